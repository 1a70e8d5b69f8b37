// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.28;

import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {Sha256Merkle} from "./Sha256Merkle.sol";
import {Staking} from "./Staking.sol";
import {TrainingRegistry} from "./TrainingRegistry.sol";

/// @title Who contributed what to a round: one Merkle root a round, written once, whatever the number of nodes.
/// @notice Anybody can prove a record against it. A node that signs two different updates under one number is
/// slashed by whoever shows both: no arbiter is needed.
contract ContributionTracker is EIP712 {
    struct Round {
        bytes32 root;
        bytes32 model;
        uint32 count;
        uint64 at;
    }

    /// @notice What a node signs (EIP-712). A node that trains a round anew counts `nonce` up.
    struct Update {
        bytes32 session;
        uint64 round;
        bytes32 baseModel;
        bytes32 updateHash;
        uint64 samples;
        uint64 nonce;
    }

    bytes32 public constant UPDATE_TYPEHASH = keccak256(
        "Update(bytes32 session,uint64 round,bytes32 baseModel,bytes32 updateHash,uint64 samples,uint64 nonce)"
    );
    bytes32 public constant EQUIVOCATION = "equivocation";

    TrainingRegistry public immutable registry;
    Staking public immutable staking;

    /// @notice What an equivocation costs, or all of the stake if that is less.
    uint128 public immutable penalty;

    mapping(bytes32 session => mapping(uint64 round => Round)) public rounds;
    mapping(bytes32 fault => bool) public proven;

    event Recorded(bytes32 indexed session, uint64 indexed round, bytes32 root, uint32 count, bytes32 model);
    event Equivocated(address indexed node, bytes32 indexed session, uint64 round, bytes32 first, bytes32 second);

    error AlreadyRecorded(bytes32 session, uint64 round);
    error NoRoot(bytes32 session, uint64 round);
    error NoEquivocation();
    error AlreadyProven(address node, bytes32 session, uint64 round);

    constructor(TrainingRegistry registry_, Staking staking_, uint128 penalty_) EIP712("Tutti", "1") {
        registry = registry_;
        staking = staking_;
        penalty = penalty_;
    }

    /// @notice Record a round of a session of the caller's.
    function record(bytes32 session, uint64 round, bytes32 root, uint32 count, bytes32 model) external {
        registry.requireOpen(session, msg.sender);
        if (root == 0) revert NoRoot(session, round);
        if (rounds[session][round].root != 0) revert AlreadyRecorded(session, round);
        rounds[session][round] = Round(root, model, count, uint64(block.timestamp));
        emit Recorded(session, round, root, count, model);
    }

    /// @notice Whether a contribution (its JSON, byte for byte) is among those of a round.
    function verify(bytes32 session, uint64 round, bytes calldata contribution, bytes32[] calldata proof)
        external
        view
        returns (bool)
    {
        bytes32 root = rounds[session][round].root;
        return root != 0 && Sha256Merkle.holds(root, contribution, proof);
    }

    /// @notice What is signed for an update.
    function digest(Update calldata update) public view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(UPDATE_TYPEHASH, update)));
    }

    /// @notice Two different updates of one node for the same round, under the same nonce: its stake is burned.
    function proveEquivocation(Update calldata a, bytes calldata signatureA, Update calldata b, bytes calldata signatureB)
        external
    {
        address node = ECDSA.recover(digest(a), signatureA);
        bool same = a.session == b.session && a.round == b.round && a.nonce == b.nonce;
        if (!same || a.updateHash == b.updateHash || ECDSA.recover(digest(b), signatureB) != node) {
            revert NoEquivocation();
        }
        bytes32 fault = keccak256(abi.encode(node, a.session, a.round, a.nonce));
        if (proven[fault]) revert AlreadyProven(node, a.session, a.round);
        proven[fault] = true;
        emit Equivocated(node, a.session, a.round, a.updateHash, b.updateHash);
        uint256 amount = Math.min(penalty, staking.slashable(node));
        if (amount > 0) staking.slash(node, uint128(amount), address(0), 0, EQUIVOCATION);
    }
}
