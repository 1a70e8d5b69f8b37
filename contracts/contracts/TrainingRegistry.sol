// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.28;

/// @title Training sessions: who trains which model on which data, and what became of it.
/// @notice A session belongs to whoever opened it. Hashes only: no data and no model lie on the chain.
contract TrainingRegistry {
    struct Session {
        address coordinator;
        uint64 openedAt;
        uint32 rounds;
        uint64 closedAt;
        bytes32 spec;
        bytes32 data;
        bytes32 model;
    }

    mapping(bytes32 id => Session) public sessions;
    bytes32[] public ids;

    event SessionOpened(bytes32 indexed id, address indexed coordinator, bytes32 spec, bytes32 data, uint32 rounds);
    event SessionClosed(bytes32 indexed id, bytes32 model);

    error SessionExists(bytes32 id);
    error NoSuchSession(bytes32 id);
    error SessionOver(bytes32 id);
    error NotYours(bytes32 id, address caller);

    function count() external view returns (uint256) {
        return ids.length;
    }

    /// @notice Open a session. `spec`: hash of the job's specification; `data`: of the description of its data.
    function open(bytes32 id, bytes32 spec, bytes32 data, uint32 rounds) external {
        if (sessions[id].coordinator != address(0)) revert SessionExists(id);
        sessions[id] = Session(msg.sender, uint64(block.timestamp), rounds, 0, spec, data, 0);
        ids.push(id);
        emit SessionOpened(id, msg.sender, spec, data, rounds);
    }

    /// @notice Close a session with its last model (zero: there is none).
    function close(bytes32 id, bytes32 model) external {
        requireOpen(id, msg.sender);
        (sessions[id].closedAt, sessions[id].model) = (uint64(block.timestamp), model);
        emit SessionClosed(id, model);
    }

    /// @notice Reverts unless the session is open and the caller's.
    function requireOpen(bytes32 id, address coordinator) public view {
        Session storage session = sessions[id];
        if (session.coordinator == address(0)) revert NoSuchSession(id);
        if (session.coordinator != coordinator) revert NotYours(id, coordinator);
        if (session.closedAt != 0) revert SessionOver(id);
    }
}
