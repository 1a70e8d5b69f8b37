// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.28;

import {AccessControl} from "@openzeppelin/contracts/access/AccessControl.sol";
import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC1363} from "@openzeppelin/contracts/token/ERC20/extensions/ERC1363.sol";

/// @title The token: whole units, capped for ever, with transfers that tell their receiver (ERC-1363).
/// @notice Nobody can move or freeze another's tokens. Burned tokens do not make room under the cap.
contract TuttiToken is ERC1363, AccessControl {
    bytes32 public constant MINTER_ROLE = keccak256("MINTER_ROLE");

    /// @notice The most that may ever be minted.
    uint256 public immutable cap;

    /// @notice Everything ever minted; `minted - totalSupply()` was burned.
    uint256 public minted;

    error OverCap(uint256 minted, uint256 amount, uint256 cap);

    constructor(address admin, uint256 cap_) ERC20("Tutti", "TUTTI") {
        cap = cap_;
        _grantRole(DEFAULT_ADMIN_ROLE, admin);
    }

    /// @notice Whole tokens, so that nothing is ever rounded.
    function decimals() public pure override returns (uint8) {
        return 0;
    }

    function mint(address to, uint256 amount) external onlyRole(MINTER_ROLE) {
        if (amount > cap - minted) revert OverCap(minted, amount, cap);
        minted += amount;
        _mint(to, amount);
    }

    /// @notice Destroy tokens of the caller's own.
    function burn(uint256 amount) external {
        _burn(msg.sender, amount);
    }

    function supportsInterface(bytes4 id) public view override(ERC1363, AccessControl) returns (bool) {
        return super.supportsInterface(id);
    }
}
