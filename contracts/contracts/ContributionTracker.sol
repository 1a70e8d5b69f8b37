// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.28;

import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {Sha256Merkle} from "./Sha256Merkle.sol";
import {Staking} from "./Staking.sol";
import {TrainingRegistry} from "./TrainingRegistry.sol";

/// @title Who contributed what to a round: one Merkle root a round, written once, whatever the number of nodes.
/// @notice Anybody can prove a record against it. A node that signs two different updates under one number is
/// slashed by whoever shows both: no arbiter is needed. Stake answers for the signatures of its own address, and of
/// those keys that it has vouched for.
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

    /// @notice What an equivocation costs.
    uint96 public immutable penalty;

    mapping(address coordinator => mapping(bytes32 session => mapping(uint64 round => Round))) public rounds;

    /// @notice Whose stake answers for which keys, for ever.
    mapping(address staker => mapping(address signer => bool)) public vouched;

    /// @notice What of the penalty a fault has cost a stake so far: what was not there can be taken when it is.
    mapping(bytes32 fault => mapping(address staker => uint96)) public taken;
    mapping(bytes32 fault => mapping(address staker => bool)) public proven;

    event Recorded(
        address indexed coordinator, bytes32 indexed session, uint64 indexed round, bytes32 root, uint32 count, bytes32 model
    );
    event Vouched(address indexed staker, address indexed signer);
    event Equivocated(
        address indexed node, address indexed staker, bytes32 indexed session, uint64 round, bytes32 first, bytes32 second, uint96 taken
    );

    error AlreadyRecorded(bytes32 session, uint64 round);
    error NoRoot(bytes32 session, uint64 round);
    error NoEquivocation();
    error NotAnswerable(address staker, address signer);
    error AlreadyProven(address node, bytes32 session, uint64 round);

    constructor(TrainingRegistry registry_, Staking staking_, uint96 penalty_) EIP712("Tutti", "1") {
        registry = registry_;
        staking = staking_;
        penalty = penalty_;
    }

    /// @notice Record a round of a session of the caller's.
    function record(bytes32 session, uint64 round, bytes32 root, uint32 count, bytes32 model) external {
        registry.requireOpen(msg.sender, session);
        if (root == 0) revert NoRoot(session, round);
        Round storage written = rounds[msg.sender][session][round];
        if (written.root != 0) revert AlreadyRecorded(session, round);
        (written.root, written.model, written.count, written.at) = (root, model, count, uint64(block.timestamp));
        emit Recorded(msg.sender, session, round, root, count, model);
    }

    /// @notice Whether a contribution (its JSON, byte for byte) is among those of a round.
    function verify(
        address coordinator,
        bytes32 session,
        uint64 round,
        bytes calldata contribution,
        bytes32[] calldata proof
    ) external view returns (bool) {
        bytes32 root = rounds[coordinator][session][round].root;
        return root != 0 && Sha256Merkle.holds(root, contribution, proof);
    }

    /// @notice Let the caller's stake answer for what a key signs. It cannot be taken back.
    function vouch(address signer) external {
        vouched[msg.sender][signer] = true;
        emit Vouched(msg.sender, signer);
    }

    /// @notice What is signed for an update.
    function digest(Update calldata update) public view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(UPDATE_TYPEHASH, update)));
    }

    /// @notice Two different updates of one node for the same round, under the same nonce: the penalty, or what there is
    /// of it, is burned from the stake of its own address or of one that vouched for it. What was not there can be
    /// taken later, by the same proof again.
    function proveEquivocation(
        Update calldata a,
        bytes calldata signatureA,
        Update calldata b,
        bytes calldata signatureB,
        address staker
    ) external {
        address node = ECDSA.recover(digest(a), signatureA);
        bool same = a.session == b.session && a.round == b.round && a.nonce == b.nonce;
        if (!same || a.updateHash == b.updateHash || ECDSA.recover(digest(b), signatureB) != node) {
            revert NoEquivocation();
        }
        if (staker != node && !vouched[staker][node]) revert NotAnswerable(staker, node);
        bytes32 fault = keccak256(abi.encode(node, a.session, a.round, a.nonce));
        uint96 amount = staking.slash(staker, penalty - taken[fault][staker], EQUIVOCATION);
        if (amount == 0 && proven[fault][staker]) revert AlreadyProven(node, a.session, a.round);
        taken[fault][staker] += amount;
        proven[fault][staker] = true;
        emit Equivocated(node, staker, a.session, a.round, a.updateHash, b.updateHash, amount);
    }
}
