// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.28;

import {Intake} from "./Intake.sol";
import {Staking} from "./Staking.sol";
import {TuttiToken} from "./TuttiToken.sol";

/// @title Compute jobs: a reward in escrow, a worker's bond beside it, and a way out of every state.
/// @notice The payer names the settler and the deadline when it pays in:
/// `token.transferAndCall(escrow, amount, abi.encode(id, settler, deadline))`. The settler can pay the worker or give
/// the payer its tokens back, never keep them; an arbiter, who is never the settler, can take a bond, and never keep
/// it; once the deadline is over, anybody can give everything back.
///
///     Open -- offer, accept --> Assigned --> Paid
///       ^                          |
///       +-- release | penalise ----+      Open, Assigned --> Paid | Refunded
contract JobEscrow is Intake {
    enum State {
        None,
        Open,
        Assigned,
        Paid,
        Refunded
    }

    struct Job {
        address payer;
        State state;
        uint64 deadline;
        address settler;
        uint128 amount;
        uint128 bond;
        address worker;
    }

    struct Record {
        uint64 done;
        uint64 failed;
    }

    bytes32 public constant ARBITER_ROLE = keccak256("ARBITER_ROLE");
    bytes32 public constant WRONG_RESULT = "wrong result";

    Staking public immutable staking;

    mapping(bytes32 id => Job) public jobs;
    mapping(address worker => Record) public records;

    /// @notice What all jobs hold together.
    uint256 public totalEscrowed;

    event Opened(bytes32 indexed id, address indexed payer, address indexed settler, uint256 amount, uint64 deadline);
    event Offered(bytes32 indexed id, address indexed worker, uint256 bond);
    event Accepted(bytes32 indexed id, address indexed worker, uint256 bond);
    event Released(bytes32 indexed id, address indexed worker);
    event Penalised(bytes32 indexed id, address indexed worker, uint256 bond, uint256 compensation);
    event Paid(bytes32 indexed id, address indexed to, uint256 amount);
    event Refunded(bytes32 indexed id, address indexed payer, uint256 amount);

    error NoSuchJob(bytes32 id);
    error JobExists(bytes32 id);
    error JobOver(bytes32 id);
    error WrongState(bytes32 id, State state);
    error NotYours(bytes32 id, address caller);
    error TooLate(bytes32 id, uint64 deadline);
    error TooEarly(bytes32 id, uint64 deadline);
    error BadTerms();

    constructor(TuttiToken token_, Staking staking_, address admin) Intake(token_, admin) {
        staking = staking_;
    }

    /// @notice 100 for a worker that has never failed, down to 0; it belongs to the address and cannot be reset.
    function reputation(address worker) external view returns (uint256) {
        Record storage record = records[worker];
        return (100 * (uint256(record.done) + 1)) / (uint256(record.done) + record.failed + 1);
    }

    /// @notice Offer an open job to a worker, who must put up `bond` to take it.
    function offer(bytes32 id, address worker, uint128 bond) external {
        Job storage job = _mine(id, State.Open);
        if (worker == address(0) || worker == job.settler || worker == job.payer) revert BadTerms();
        (job.worker, job.bond) = (worker, bond);
        emit Offered(id, worker, bond);
    }

    /// @notice Take a job that was offered to the caller, whose bond is locked. The bond is named again, so that
    /// nobody can raise it in the last moment.
    function accept(bytes32 id, uint128 bond) external {
        Job storage job = _in(id, State.Open);
        if (msg.sender != job.worker) revert NotYours(id, msg.sender);
        if (bond != job.bond) revert BadTerms();
        if (block.timestamp > job.deadline) revert TooLate(id, job.deadline);
        job.state = State.Assigned;
        emit Accepted(id, msg.sender, job.bond);
        if (job.bond > 0) staking.lock(msg.sender, job.bond);
    }

    /// @notice The settler ends a worker's turn without fault: its bond is free, and the job open to another.
    function release(bytes32 id) external {
        Job storage job = _mine(id, State.Assigned);
        (address worker, uint128 bond) = _reopen(job);
        emit Released(id, worker);
        if (bond > 0) staking.unlock(worker, bond);
    }

    /// @notice A wrong result costs its bond: `compensation`, at most the reward, to the payer, the rest is burned. The
    /// job is open to another worker.
    function penalise(bytes32 id, uint128 compensation) external onlyRole(ARBITER_ROLE) {
        Job storage job = _in(id, State.Assigned);
        if (msg.sender == job.settler) revert NotYours(id, msg.sender);
        if (compensation > job.amount) revert BadTerms();
        (address worker, uint128 bond) = _reopen(job);
        records[worker].failed += 1;
        emit Penalised(id, worker, bond, compensation);
        staking.slashBond(worker, bond, job.payer, compensation, WRONG_RESULT);
    }

    /// @notice The settler pays: the worker that took the job, or anybody else but itself if nobody did.
    function pay(bytes32 id, address to) external {
        Job storage job = _live(id);
        if (msg.sender != job.settler) revert NotYours(id, msg.sender);
        bool taken = job.state != State.Open;
        if (to == address(0) || to == job.settler || (taken && to != job.worker)) revert BadTerms();
        _pay(id, job, to);
    }

    /// @notice The settler gives the payer its tokens back; the worker keeps its bond.
    function refund(bytes32 id) external {
        Job storage job = _live(id);
        if (msg.sender != job.settler) revert NotYours(id, msg.sender);
        _refund(id, job);
    }

    /// @notice Anybody, once the deadline is over: the payer has its tokens back, and the worker its bond.
    function expire(bytes32 id) external {
        Job storage job = _live(id);
        if (block.timestamp <= job.deadline) revert TooEarly(id, job.deadline);
        _refund(id, job);
    }

    function _received(address from, uint128 value, bytes calldata data) internal override {
        (bytes32 id, address settler, uint64 deadline) = abi.decode(data, (bytes32, address, uint64));
        Job storage job = jobs[id];
        if (job.state != State.None) revert JobExists(id);
        if (settler == address(0) || deadline <= block.timestamp) revert BadTerms();
        (job.payer, job.state, job.deadline) = (from, State.Open, deadline);
        (job.settler, job.amount) = (settler, value);
        totalEscrowed += value;
        emit Opened(id, from, settler, value, deadline);
    }

    function _pay(bytes32 id, Job storage job, address to) private {
        bool taken = job.state != State.Open;
        job.state = State.Paid;
        totalEscrowed -= job.amount;
        if (taken) records[to].done += 1;
        emit Paid(id, to, job.amount);
        if (taken && job.bond > 0) staking.unlock(job.worker, job.bond);
        _send(to, job.amount);
    }

    function _reopen(Job storage job) private returns (address worker, uint128 bond) {
        (worker, bond) = (job.worker, job.bond);
        (job.state, job.worker, job.bond) = (State.Open, address(0), 0);
    }

    function _refund(bytes32 id, Job storage job) private {
        bool taken = job.state != State.Open;
        job.state = State.Refunded;
        totalEscrowed -= job.amount;
        emit Refunded(id, job.payer, job.amount);
        if (taken && job.bond > 0) staking.unlock(job.worker, job.bond);
        _send(job.payer, job.amount);
    }

    function _live(bytes32 id) private view returns (Job storage job) {
        job = jobs[id];
        if (job.state == State.None) revert NoSuchJob(id);
        if (job.state >= State.Paid) revert JobOver(id);
    }

    function _in(bytes32 id, State state) private view returns (Job storage job) {
        job = _live(id);
        if (job.state != state) revert WrongState(id, job.state);
    }

    function _mine(bytes32 id, State state) private view returns (Job storage job) {
        job = _in(id, state);
        if (msg.sender != job.settler) revert NotYours(id, msg.sender);
    }
}
