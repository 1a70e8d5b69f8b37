// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.28;

import {Intake} from "./Intake.sol";
import {Staking} from "./Staking.sol";
import {TuttiToken} from "./TuttiToken.sol";

/// @title Compute jobs: a reward in escrow, a worker's bond beside it, and a way out of every state.
/// @notice The payer names the settler and the deadline when it pays in:
/// `token.transferAndCall(escrow, amount, abi.encode(id, settler, deadline))`; the job lies under `keyOf(payer, id)`.
/// The settler can pay the worker or give the payer its tokens back, never keep them; an arbiter, who is no party to
/// the job, can take a bond: half of it at most goes to the payer, the rest is burned. Once the deadline is over,
/// anybody can give everything back.
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
        uint96 amount;
        address worker;
        uint96 bond;
    }

    bytes32 public constant ARBITER_ROLE = keccak256("ARBITER_ROLE");
    bytes32 public constant WRONG_RESULT = "wrong result";

    Staking public immutable staking;

    mapping(bytes32 key => Job) public jobs;

    /// @notice What all jobs hold together.
    uint256 public totalEscrowed;

    event Opened(
        bytes32 indexed key, address indexed payer, address indexed settler, bytes32 id, uint256 amount, uint64 deadline
    );
    event Offered(bytes32 indexed key, address indexed worker, uint256 bond);
    event Accepted(bytes32 indexed key, address indexed worker, uint256 bond);
    event Released(bytes32 indexed key, address indexed worker);
    event Penalised(bytes32 indexed key, address indexed worker, uint256 bond, uint256 compensation);
    event Paid(bytes32 indexed key, address indexed to, uint256 amount);
    event Refunded(bytes32 indexed key, address indexed payer, uint256 amount);

    error NoSuchJob(bytes32 key);
    error JobExists(bytes32 key);
    error JobOver(bytes32 key);
    error WrongState(bytes32 key, State state);
    error NotYours(bytes32 key, address caller);
    error TooLate(bytes32 key, uint64 deadline);
    error TooEarly(bytes32 key, uint64 deadline);

    constructor(TuttiToken token_, Staking staking_, address admin) Intake(token_, admin) {
        staking = staking_;
    }

    /// @notice Offer an open job to a worker, who must put up `bond` to take it.
    function offer(bytes32 key, address worker, uint96 bond) external {
        Job storage job = _mine(key, State.Open);
        if (worker == address(0) || worker == job.settler || worker == job.payer) revert BadTerms();
        (job.worker, job.bond) = (worker, bond);
        emit Offered(key, worker, bond);
    }

    /// @notice Take a job that was offered to the caller, whose bond is locked. The bond is named again, so that
    /// nobody can raise it in the last moment.
    function accept(bytes32 key, uint96 bond) external {
        Job storage job = _in(key, State.Open);
        if (msg.sender != job.worker) revert NotYours(key, msg.sender);
        if (bond != job.bond) revert BadTerms();
        if (block.timestamp > job.deadline) revert TooLate(key, job.deadline);
        job.state = State.Assigned;
        emit Accepted(key, msg.sender, job.bond);
        if (job.bond > 0) staking.lock(msg.sender, job.bond);
    }

    /// @notice The settler ends a worker's turn without fault: its bond is free, and the job open to another.
    function release(bytes32 key) external {
        Job storage job = _mine(key, State.Assigned);
        (address worker, uint96 bond) = _reopen(job);
        emit Released(key, worker);
        if (bond > 0) staking.unlock(worker, bond);
    }

    /// @notice A wrong result costs its bond: `compensation`, at most half of it and at most the reward, to the payer,
    /// the rest is burned. The job is open to another worker. Who is party to a job cannot judge it.
    function penalise(bytes32 key, uint96 compensation) external onlyRole(ARBITER_ROLE) {
        Job storage job = _in(key, State.Assigned);
        bool party = msg.sender == job.settler || msg.sender == job.payer || msg.sender == job.worker;
        if (party) revert NotYours(key, msg.sender);
        if (compensation > job.amount || compensation > job.bond / 2) revert BadTerms();
        (address worker, uint96 bond) = _reopen(job);
        emit Penalised(key, worker, bond, compensation);
        staking.slashBond(worker, bond, job.payer, compensation, WRONG_RESULT);
    }

    /// @notice The settler pays: the worker that took the job, or anybody else but itself if nobody did.
    function pay(bytes32 key, address to) external {
        Job storage job = _live(key);
        if (msg.sender != job.settler) revert NotYours(key, msg.sender);
        bool taken = job.state != State.Open;
        if (to == address(0) || to == job.settler || (taken && to != job.worker)) revert BadTerms();
        job.state = State.Paid;
        emit Paid(key, to, job.amount);
        _end(job, taken, to);
    }

    /// @notice The settler gives the payer its tokens back; the worker keeps its bond.
    function refund(bytes32 key) external {
        Job storage job = _live(key);
        if (msg.sender != job.settler) revert NotYours(key, msg.sender);
        _refund(key, job);
    }

    /// @notice Anybody, once the deadline is over: the payer has its tokens back, and the worker its bond.
    function expire(bytes32 key) external {
        Job storage job = _live(key);
        if (block.timestamp <= job.deadline) revert TooEarly(key, job.deadline);
        _refund(key, job);
    }

    function _received(address from, uint96 value, bytes calldata data) internal override {
        (bytes32 id, bytes32 key, address settler, uint64 deadline) = _terms(from, data);
        Job storage job = jobs[key];
        if (job.state != State.None) revert JobExists(key);
        (job.payer, job.state, job.deadline) = (from, State.Open, deadline);
        (job.settler, job.amount) = (settler, value);
        totalEscrowed += value;
        emit Opened(key, from, settler, id, value, deadline);
    }

    function _reopen(Job storage job) private returns (address worker, uint96 bond) {
        (worker, bond) = (job.worker, job.bond);
        (job.state, job.worker, job.bond) = (State.Open, address(0), 0);
    }

    function _refund(bytes32 key, Job storage job) private {
        bool taken = job.state != State.Open;
        job.state = State.Refunded;
        emit Refunded(key, job.payer, job.amount);
        _end(job, taken, job.payer);
    }

    /// @dev What was in escrow goes out, and the worker's bond is free.
    function _end(Job storage job, bool taken, address to) private {
        totalEscrowed -= job.amount;
        if (taken && job.bond > 0) staking.unlock(job.worker, job.bond);
        _send(to, job.amount);
    }

    function _live(bytes32 key) private view returns (Job storage job) {
        job = jobs[key];
        if (job.state == State.None) revert NoSuchJob(key);
        if (job.state >= State.Paid) revert JobOver(key);
    }

    function _in(bytes32 key, State state) private view returns (Job storage job) {
        job = _live(key);
        if (job.state != state) revert WrongState(key, job.state);
    }

    function _mine(bytes32 key, State state) private view returns (Job storage job) {
        job = _in(key, state);
        if (msg.sender != job.settler) revert NotYours(key, msg.sender);
    }
}
