// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.28;

import {AccessControl} from "@openzeppelin/contracts/access/AccessControl.sol";
import {IERC1363Receiver} from "@openzeppelin/contracts/interfaces/IERC1363Receiver.sol";
import {Pausable} from "@openzeppelin/contracts/utils/Pausable.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {TuttiToken} from "./TuttiToken.sol";

/// @title What the three contracts that hold tokens share: tokens come in by `token.transferAndCall`, one transaction.
/// @notice A pause stops only what comes in. Nothing in these contracts can stop what goes out. Tokens that are sent
/// here by a plain transfer are nobody's, and count nowhere.
abstract contract Intake is AccessControl, Pausable, IERC1363Receiver {
    bytes32 public constant PAUSER_ROLE = keccak256("PAUSER_ROLE");

    /// @notice The longest that tokens can be set aside for: what is forgotten comes back.
    uint64 public constant MAX_TERM = 366 days;

    TuttiToken public immutable token;

    error NotTheToken(address caller);
    error NothingSent();
    error BadTerms();

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
        _received(from, SafeCast.toUint96(value), data);
        return IERC1363Receiver.onTransferReceived.selector;
    }

    function pause() external onlyRole(PAUSER_ROLE) {
        _pause();
    }

    function unpause() external onlyRole(PAUSER_ROLE) {
        _unpause();
    }

    /// @notice Under which key a payer's escrow or pool lies: nobody can take a name away from another.
    function keyOf(address payer, bytes32 id) public pure returns (bytes32) {
        return keccak256(abi.encode(payer, id));
    }

    function _received(address from, uint96 value, bytes calldata data) internal virtual;

    /// @dev Whom a payer puts in charge of which of its ids, and until when.
    function _terms(address from, bytes calldata data) internal view returns (bytes32 id, bytes32 key, address who, uint64 deadline) {
        (id, who, deadline) = abi.decode(data, (bytes32, address, uint64));
        if (who == address(0) || deadline <= block.timestamp || deadline > block.timestamp + MAX_TERM) revert BadTerms();
        key = keyOf(from, id);
    }

    /// @dev The token is ours and either moves everything or reverts.
    function _send(address to, uint256 amount) internal {
        if (amount > 0) token.transfer(to, amount);
    }
}
