// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.28;

import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {Intake} from "./Intake.sol";
import {TuttiToken} from "./TuttiToken.sol";

/// @title Tokens at risk: staked by `token.transferAndCall(staking, amount, "")`, taken back after a period.
/// @notice What unbonds can still be slashed. Slashed tokens make the victim whole first; the rest is burned, and
/// whoever decides gets nothing. A bond that secures a job (`locked`) belongs to that job alone.
contract Staking is Intake {
    struct Position {
        uint128 staked;
        uint128 unbonding;
        uint128 locked;
        uint64 due;
    }

    bytes32 public constant ARBITER_ROLE = keccak256("ARBITER_ROLE");
    bytes32 public constant BOND_ROLE = keccak256("BOND_ROLE");

    /// @notice Seconds between `unstake` and `withdraw`.
    uint64 public immutable period;

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
    error BadCompensation(address account, address victim, uint256 amount, uint256 compensation);

    constructor(TuttiToken token_, address admin, uint64 period_) Intake(token_, admin) {
        period = period_;
    }

    /// @notice Stake that is neither bond nor on its way out.
    function available(address account) public view returns (uint256) {
        return positions[account].staked - positions[account].locked;
    }

    /// @notice The most that `slash` can take.
    function slashable(address account) external view returns (uint256) {
        return available(account) + positions[account].unbonding;
    }

    /// @notice Begin to take stake back. The period starts anew for everything that unbonds.
    function unstake(uint128 amount) external {
        Position storage position = positions[msg.sender];
        _require(msg.sender, available(msg.sender), amount);
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
        uint128 amount = position.unbonding;
        if (amount == 0) revert NothingUnbonds(msg.sender);
        if (block.timestamp < position.due) revert StillUnbonding(msg.sender, position.due);
        position.unbonding = 0;
        totalUnbonding -= amount;
        emit Withdrawn(msg.sender, amount);
        _send(msg.sender, amount);
    }

    /// @notice Take stake for a proven fault: what is free of bonds first, then what unbonds.
    function slash(address account, uint128 amount, address victim, uint128 compensation, bytes32 reason)
        external
        onlyRole(ARBITER_ROLE)
    {
        uint256 fromStake = Math.min(amount, available(account));
        _require(account, fromStake + positions[account].unbonding, amount);
        positions[account].staked -= uint128(fromStake);
        positions[account].unbonding -= uint128(amount - fromStake);
        totalStaked -= fromStake;
        totalUnbonding -= amount - fromStake;
        _take(account, amount, victim, compensation, reason);
    }

    /// @notice Secure a job with stake.
    function lock(address account, uint128 amount) external onlyRole(BOND_ROLE) {
        _require(account, available(account), amount);
        positions[account].locked += amount;
        emit Locked(account, amount);
    }

    function unlock(address account, uint128 amount) external onlyRole(BOND_ROLE) {
        positions[account].locked -= amount;
        emit Unlocked(account, amount);
    }

    /// @notice Take a bond that was locked.
    function slashBond(address account, uint128 amount, address victim, uint128 compensation, bytes32 reason)
        external
        onlyRole(BOND_ROLE)
    {
        positions[account].locked -= amount;
        positions[account].staked -= amount;
        totalStaked -= amount;
        _take(account, amount, victim, compensation, reason);
    }

    function _received(address from, uint128 value, bytes calldata) internal override {
        positions[from].staked += value;
        totalStaked += value;
        emit Staked(from, value);
    }

    function _take(address account, uint128 amount, address victim, uint128 compensation, bytes32 reason) private {
        bool gain = compensation > 0 && (victim == account || victim == msg.sender || victim == address(0));
        if (gain || compensation > amount) revert BadCompensation(account, victim, amount, compensation);
        emit Slashed(account, amount, victim, compensation, reason);
        _send(victim, compensation);
        token.burn(amount - compensation);
    }

    function _require(address account, uint256 has, uint256 amount) private pure {
        if (amount == 0 || amount > has) revert InsufficientStake(account, has, amount);
    }
}
