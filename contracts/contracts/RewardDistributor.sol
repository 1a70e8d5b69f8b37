// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.28;

import {Intake} from "./Intake.sol";
import {Sha256Merkle} from "./Sha256Merkle.sol";
import {TuttiToken} from "./TuttiToken.sol";

/// @title Pools of rewards: one root a round, claimed whenever a node likes.
/// @notice A sponsor names the coordinator and a deadline when it fills a pool:
/// `token.transferAndCall(distributor, amount, abi.encode(id, coordinator, deadline))`; the pool lies under
/// `keyOf(sponsor, id)`. Each round the coordinator publishes the root of everybody's cumulative earnings,
/// (account, total) pairs, and how much of which pool that newly allots. A claim pays what the account has not taken
/// yet, of any number of rounds. No coordinator can give away more than its pools hold, or what others have allotted.
/// @dev A claim is paid from what was allotted in rounds whose window is over: never from those that the guardian can
/// still veto. A root that promises more than was allotted cannot be paid to all: anybody can add up the published
/// list within `window` seconds, in which the guardian can veto the root.
contract RewardDistributor is Intake {
    struct Pool {
        address sponsor;
        uint64 deadline;
        bool over;
        address coordinator;
        uint96 left;
    }

    /// @dev `upTo`: what the coordinator had allotted in all rounds up to this one.
    struct Round {
        bytes32 root;
        bytes32 pool;
        uint96 amount;
        uint96 upTo;
        uint64 validFrom;
    }

    bytes32 public constant GUARDIAN_ROLE = keccak256("GUARDIAN_ROLE");

    /// @notice Seconds between a root's publication and the first claim on it.
    uint64 public immutable window;

    mapping(bytes32 key => Pool) public pools;
    mapping(address coordinator => Round[]) public rounds;
    mapping(address coordinator => uint256) public paid;
    mapping(address coordinator => mapping(address account => uint256)) public claimed;

    /// @notice What all pools hold that is not allotted, and what is allotted and not claimed.
    uint256 public totalPooled;
    uint256 public totalOwed;

    event Funded(
        bytes32 indexed key,
        address indexed sponsor,
        address indexed coordinator,
        bytes32 id,
        uint256 amount,
        uint64 deadline
    );
    event Distributed(
        bytes32 indexed key, address indexed coordinator, uint256 round, bytes32 root, uint256 amount, bytes32 evidence
    );
    event Vetoed(address indexed coordinator, uint256 round, bytes32 root);
    event Claimed(address indexed coordinator, address indexed account, uint256 amount);
    event Refunded(bytes32 indexed key, address indexed sponsor, uint256 amount);

    error NoSuchPool(bytes32 key);
    error PoolExists(bytes32 key);
    error PoolOver(bytes32 key);
    error PoolTooSmall(bytes32 key, uint256 left, uint256 amount);
    error NotYours(bytes32 key, address caller);
    error NoSuchRound(address coordinator, uint256 round);
    error NotYetValid(uint256 round, uint64 validFrom);
    error VetoedTooLate(uint256 round, uint64 validFrom);
    error BadProof();
    error NothingOwed(address account);
    error RootPromisesTooMuch(address account, uint256 amount, uint256 left);

    constructor(TuttiToken token_, address admin, uint64 window_) Intake(token_, admin) {
        window = window_;
    }

    function roundCount(address coordinator) external view returns (uint256) {
        return rounds[coordinator].length;
    }

    /// @notice What a coordinator has allotted in all its rounds.
    function allotted(address coordinator) public view returns (uint96) {
        uint256 count = rounds[coordinator].length;
        return count == 0 ? 0 : rounds[coordinator][count - 1].upTo;
    }

    /// @notice Publish the root of all earnings so far; `amount` of the pool becomes owed. `evidence` is the root of
    /// the round's contributions, from which anybody can compute the earnings again.
    function distribute(bytes32 key, uint96 amount, bytes32 root, bytes32 evidence) external {
        Pool storage pool = _live(key);
        if (msg.sender != pool.coordinator) revert NotYours(key, msg.sender);
        if (amount > pool.left) revert PoolTooSmall(key, pool.left, amount);
        pool.left -= amount;
        totalPooled -= amount;
        totalOwed += amount;
        uint96 upTo = allotted(msg.sender) + amount;
        rounds[msg.sender].push(Round(root, key, amount, upTo, uint64(block.timestamp) + window));
        emit Distributed(key, msg.sender, rounds[msg.sender].length - 1, root, amount, evidence);
    }

    /// @notice Pay an account what it has earned and not claimed; anybody may send this for it.
    function claim(address coordinator, uint256 round, address account, uint256 total, bytes32[] calldata proof)
        external
    {
        if (round >= rounds[coordinator].length) revert NoSuchRound(coordinator, round);
        Round storage published = rounds[coordinator][round];
        if (block.timestamp < published.validFrom) revert NotYetValid(round, published.validFrom);
        if (!Sha256Merkle.holds(published.root, abi.encode(account, total), proof)) revert BadProof();
        uint256 before = claimed[coordinator][account];
        if (total <= before) revert NothingOwed(account);
        uint256 amount = total - before;
        uint256 rest = _valid(rounds[coordinator], round).upTo - paid[coordinator];
        if (amount > rest) revert RootPromisesTooMuch(account, amount, rest);
        claimed[coordinator][account] = total;
        paid[coordinator] += amount;
        totalOwed -= amount;
        emit Claimed(coordinator, account, amount);
        _send(account, amount);
    }

    /// @notice Take back the newest rounds, from `round` on, none of which may be valid yet. Their tokens return to
    /// their pools, or to the sponsor where the pool is over.
    function veto(address coordinator, uint256 round) external onlyRole(GUARDIAN_ROLE) {
        Round[] storage published = rounds[coordinator];
        if (round >= published.length) revert NoSuchRound(coordinator, round);
        while (published.length > round) {
            Round memory last = published[published.length - 1];
            if (block.timestamp >= last.validFrom) revert VetoedTooLate(published.length - 1, last.validFrom);
            published.pop();
            totalOwed -= last.amount;
            emit Vetoed(coordinator, published.length, last.root);
            Pool storage pool = pools[last.pool];
            if (pool.over) {
                _send(pool.sponsor, last.amount);
            } else {
                pool.left += last.amount;
                totalPooled += last.amount;
            }
        }
    }

    /// @notice What is left goes back to the sponsor: when the coordinator says so, or, after the deadline, anybody.
    function refund(bytes32 key) external {
        Pool storage pool = _live(key);
        if (msg.sender != pool.coordinator && block.timestamp <= pool.deadline) revert NotYours(key, msg.sender);
        uint96 left = pool.left;
        (pool.over, pool.left) = (true, 0);
        totalPooled -= left;
        emit Refunded(key, pool.sponsor, left);
        _send(pool.sponsor, left);
    }

    function _received(address from, uint96 value, bytes calldata data) internal override {
        (bytes32 id, bytes32 key, address coordinator, uint64 deadline) = _terms(from, data);
        if (pools[key].sponsor != address(0)) revert PoolExists(key);
        pools[key] = Pool(from, deadline, false, coordinator, value);
        totalPooled += value;
        emit Funded(key, from, coordinator, id, value, deadline);
    }

    /// @dev The newest round whose window is over, from one on of which that is known: by halves, as rounds are in order.
    function _valid(Round[] storage published, uint256 low) private view returns (Round storage) {
        uint256 high = published.length;
        while (high - low > 1) {
            uint256 middle = (low + high) / 2;
            if (published[middle].validFrom <= block.timestamp) low = middle;
            else high = middle;
        }
        return published[low];
    }

    function _live(bytes32 key) private view returns (Pool storage pool) {
        pool = pools[key];
        if (pool.sponsor == address(0)) revert NoSuchPool(key);
        if (pool.over) revert PoolOver(key);
    }
}
