// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.28;

import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {Intake} from "./Intake.sol";
import {TuttiToken} from "./TuttiToken.sol";

/// @title Tokens at risk: staked by `token.transferAndCall(staking, amount, "")`, taken back after a period.
/// @notice Only two contracts can take stake, and no person: ContributionTracker for a fault that it has a proof of,
/// and JobEscrow for a wrong result. What is free goes first, then what unbonds, then the bonds of jobs (for a wrong
/// result its own bond before all): nothing that is staked is out of reach, whatever it is bound to. What is taken
/// beyond a compensation is burned.
contract Staking is Intake {
    struct Position {
        uint96 staked;
        uint96 unbonding;
        uint64 due;
        uint96 locked;
    }

    bytes32 public constant FAULT_ROLE = keccak256("FAULT_ROLE");
    bytes32 public constant BOND_ROLE = keccak256("BOND_ROLE");

    /// @notice Seconds between `unstake` and `withdraw`.
    uint64 public immutable period;

    /// @notice `locked`: of `staked`, what is bond of jobs.
    mapping(address account => Position) public positions;
    uint256 public totalStaked;
    uint256 public totalUnbonding;

    event Staked(address indexed account, uint256 amount);
    event Unstaked(address indexed account, uint256 amount, uint64 due);
    event Withdrawn(address indexed account, uint256 amount);
    event Locked(address indexed account, uint256 amount);
    event Unlocked(address indexed account, uint256 amount);
    event Slashed(
        address indexed account, uint256 amount, address indexed victim, uint256 compensation, bytes32 reason
    );

    error InsufficientStake(address account, uint256 available, uint256 amount);
    error NothingUnbonds(address account);
    error StillUnbonding(address account, uint64 due);

    constructor(TuttiToken token_, address admin, uint64 period_) Intake(token_, admin) {
        period = period_;
    }

    /// @notice Stake that is neither bond nor on its way out.
    function available(address account) public view returns (uint256) {
        return positions[account].staked - positions[account].locked;
    }

    /// @notice Begin to take stake back. The period starts anew for everything that unbonds.
    function unstake(uint96 amount) external {
        Position storage position = positions[msg.sender];
        _require(msg.sender, amount);
        position.staked -= amount;
        position.unbonding += amount;
        position.due = uint64(block.timestamp) + period;
        totalStaked -= amount;
        totalUnbonding += amount;
        emit Unstaked(msg.sender, amount, position.due);
    }

    /// @notice Take everything that has unbonded.
    function withdraw() external {
        Position storage position = positions[msg.sender];
        uint96 amount = position.unbonding;
        if (amount == 0) revert NothingUnbonds(msg.sender);
        if (block.timestamp < position.due) revert StillUnbonding(msg.sender, position.due);
        position.unbonding = 0;
        totalUnbonding -= amount;
        emit Withdrawn(msg.sender, amount);
        _send(msg.sender, amount);
    }

    /// @notice Burn stake for a proven fault: `amount`, or all there is if that is less.
    function slash(address account, uint96 amount, bytes32 reason)
        external
        onlyRole(FAULT_ROLE)
        returns (uint96 taken)
    {
        taken = _take(account, amount);
        _burn(account, taken, address(0), 0, reason);
    }

    /// @notice Secure a job with stake.
    function lock(address account, uint96 amount) external onlyRole(BOND_ROLE) {
        _require(account, amount);
        positions[account].locked += amount;
        emit Locked(account, amount);
    }

    /// @notice Let a bond go. A proven fault may have taken some of what was locked.
    function unlock(address account, uint96 amount) external onlyRole(BOND_ROLE) {
        uint96 freed = _min(amount, positions[account].locked);
        positions[account].locked -= freed;
        emit Unlocked(account, freed);
    }

    /// @notice Take a bond: `compensation` to the victim, the rest is burned. Where a proven fault has taken some of the
    /// bond, the account's other stake stands in.
    function slashBond(address account, uint96 amount, address victim, uint96 compensation, bytes32 reason)
        external
        onlyRole(BOND_ROLE)
        returns (uint96 taken)
    {
        Position storage position = positions[account];
        uint96 bond = _min(amount, position.locked);
        position.locked -= bond;
        position.staked -= bond;
        totalStaked -= bond;
        taken = bond + _take(account, amount - bond);
        _burn(account, taken, victim, _min(compensation, taken), reason);
    }

    function _received(address from, uint96 value, bytes calldata) internal override {
        positions[from].staked += value;
        totalStaked += value;
        emit Staked(from, value);
    }

    /// @dev What is free first, then what unbonds, then bonds.
    function _take(address account, uint96 amount) private returns (uint96 taken) {
        Position storage position = positions[account];
        uint96 free = _min(amount, position.staked - position.locked);
        uint96 unbonding = _min(amount - free, position.unbonding);
        uint96 bound = _min(amount - free - unbonding, position.locked);
        position.staked -= free + bound;
        position.unbonding -= unbonding;
        position.locked -= bound;
        totalStaked -= free + bound;
        totalUnbonding -= unbonding;
        taken = free + unbonding + bound;
    }

    function _burn(address account, uint96 taken, address victim, uint96 compensation, bytes32 reason) private {
        if (taken == 0) return;
        emit Slashed(account, taken, victim, compensation, reason);
        _send(victim, compensation);
        token.burn(taken - compensation);
    }

    function _require(address account, uint256 amount) private view {
        uint256 has = available(account);
        if (amount == 0 || amount > has) revert InsufficientStake(account, has, amount);
    }

    function _min(uint96 a, uint96 b) private pure returns (uint96) {
        return uint96(Math.min(a, b));
    }
}
