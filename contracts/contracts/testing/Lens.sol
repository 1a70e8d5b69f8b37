// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.28;

import {JobEscrow} from "../JobEscrow.sol";
import {RewardDistributor} from "../RewardDistributor.sol";
import {Staking} from "../Staking.sol";
import {TuttiToken} from "../TuttiToken.sol";

/// @title For tests only: everything that a test compares after each call, in one question.
contract Lens {
    struct Person {
        uint256 balance;
        uint96 staked;
        uint96 unbonding;
        uint64 due;
        uint96 locked;
    }

    struct Sums {
        uint256 minted;
        uint256 supply;
        uint256 staked;
        uint256 unbonding;
        uint256 escrowed;
        uint256 pooled;
        uint256 owed;
        uint256 inStaking;
        uint256 inEscrow;
        uint256 inRewards;
    }

    TuttiToken private immutable token;
    Staking private immutable staking;
    JobEscrow private immutable escrow;
    RewardDistributor private immutable rewards;

    constructor(TuttiToken token_, Staking staking_, JobEscrow escrow_, RewardDistributor rewards_) {
        (token, staking, escrow, rewards) = (token_, staking_, escrow_, rewards_);
    }

    function look(address[] calldata who, bytes32[] calldata jobs, bytes32[] calldata pools)
        external
        view
        returns (Person[] memory people, JobEscrow.Job[] memory all, RewardDistributor.Pool[] memory filled, Sums memory sums)
    {
        people = new Person[](who.length);
        for (uint256 i = 0; i < who.length; i++) people[i] = _person(who[i]);
        all = new JobEscrow.Job[](jobs.length);
        for (uint256 i = 0; i < jobs.length; i++) all[i] = _job(jobs[i]);
        filled = new RewardDistributor.Pool[](pools.length);
        for (uint256 i = 0; i < pools.length; i++) filled[i] = _pool(pools[i]);
        sums = _sums();
    }

    function _person(address who) private view returns (Person memory it) {
        it.balance = token.balanceOf(who);
        (it.staked, it.unbonding, it.due, it.locked) = staking.positions(who);
    }

    function _job(bytes32 key) private view returns (JobEscrow.Job memory it) {
        (it.payer, it.state, it.deadline, it.settler, it.amount, it.worker, it.bond) = escrow.jobs(key);
    }

    function _pool(bytes32 key) private view returns (RewardDistributor.Pool memory it) {
        (it.sponsor, it.deadline, it.over, it.coordinator, it.left) = rewards.pools(key);
    }

    function _sums() private view returns (Sums memory sums) {
        (sums.minted, sums.supply) = (token.minted(), token.totalSupply());
        (sums.staked, sums.unbonding) = (staking.totalStaked(), staking.totalUnbonding());
        (sums.escrowed, sums.pooled, sums.owed) = (escrow.totalEscrowed(), rewards.totalPooled(), rewards.totalOwed());
        sums.inStaking = token.balanceOf(address(staking));
        sums.inEscrow = token.balanceOf(address(escrow));
        sums.inRewards = token.balanceOf(address(rewards));
    }
}
