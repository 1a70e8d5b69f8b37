// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.28;

/// @title Training sessions: who trains which model on which data, and what became of it.
/// @notice Every coordinator has its own sessions: nobody can take a name away from another. Hashes only: no data and
/// no model lie on the chain.
contract TrainingRegistry {
    struct Session {
        uint64 openedAt;
        uint32 rounds;
        uint64 closedAt;
        bytes32 spec;
        bytes32 data;
        bytes32 model;
    }

    mapping(address coordinator => mapping(bytes32 id => Session)) public sessions;

    /// @notice How many sessions were ever opened.
    uint256 public count;

    event SessionOpened(bytes32 indexed id, address indexed coordinator, bytes32 spec, bytes32 data, uint32 rounds);
    event SessionClosed(bytes32 indexed id, address indexed coordinator, bytes32 model);

    error SessionExists(address coordinator, bytes32 id);
    error NoSuchSession(address coordinator, bytes32 id);
    error SessionOver(address coordinator, bytes32 id);

    /// @notice Open a session. `spec`: hash of the job's specification; `data`: of the description of its data.
    function open(bytes32 id, bytes32 spec, bytes32 data, uint32 rounds) external {
        if (sessions[msg.sender][id].openedAt != 0) revert SessionExists(msg.sender, id);
        sessions[msg.sender][id] = Session(uint64(block.timestamp), rounds, 0, spec, data, 0);
        count += 1;
        emit SessionOpened(id, msg.sender, spec, data, rounds);
    }

    /// @notice Close a session with its last model (zero: there is none).
    function close(bytes32 id, bytes32 model) external {
        requireOpen(msg.sender, id);
        Session storage session = sessions[msg.sender][id];
        (session.closedAt, session.model) = (uint64(block.timestamp), model);
        emit SessionClosed(id, msg.sender, model);
    }

    /// @notice Reverts unless the coordinator has this session, and it is open.
    function requireOpen(address coordinator, bytes32 id) public view {
        Session storage session = sessions[coordinator][id];
        if (session.openedAt == 0) revert NoSuchSession(coordinator, id);
        if (session.closedAt != 0) revert SessionOver(coordinator, id);
    }
}
