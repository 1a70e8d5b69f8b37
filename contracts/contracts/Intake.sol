// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.28;

import {AccessControl} from "@openzeppelin/contracts/access/AccessControl.sol";
import {IERC1363Receiver} from "@openzeppelin/contracts/interfaces/IERC1363Receiver.sol";
import {Pausable} from "@openzeppelin/contracts/utils/Pausable.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {TuttiToken} from "./TuttiToken.sol";

/// @title What the three contracts that hold tokens share: tokens come in by `token.transferAndCall`, one transaction.
/// @notice A pause stops only what comes in. Nothing in these contracts can stop what goes out.
abstract contract Intake is AccessControl, Pausable, IERC1363Receiver {
    bytes32 public constant PAUSER_ROLE = keccak256("PAUSER_ROLE");

    TuttiToken public immutable token;

    error NotTheToken(address caller);
    error NothingSent();

    constructor(TuttiToken token_, address admin) {
        token = token_;
        _grantRole(DEFAULT_ADMIN_ROLE, admin);
    }

    /// @inheritdoc IERC1363Receiver
    function onTransferReceived(address, address from, uint256 value, bytes calldata data)
        external
        whenNotPaused
        returns (bytes4)
    {
        if (msg.sender != address(token)) revert NotTheToken(msg.sender);
        if (value == 0) revert NothingSent();
        _received(from, SafeCast.toUint128(value), data);
        return IERC1363Receiver.onTransferReceived.selector;
    }

    function pause() external onlyRole(PAUSER_ROLE) {
        _pause();
    }

    function unpause() external onlyRole(PAUSER_ROLE) {
        _unpause();
    }

    function _received(address from, uint128 value, bytes calldata data) internal virtual;

    /// @dev The token is ours and either moves everything or reverts.
    function _send(address to, uint256 amount) internal {
        if (amount > 0) token.transfer(to, amount);
    }
}
