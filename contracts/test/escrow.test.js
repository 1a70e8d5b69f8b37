const { expect } = require("chai");
const { ethers } = require("hardhat");
const { loadFixture, time } = require("@nomicfoundation/hardhat-network-helpers");
const { key, open, stake, world } = require("./support");

let JOB; // alice's job of the name "job"

before(async () => {
  JOB = key((await ethers.getSigners())[4], "job");
});

// A job of 100 tokens that alice pays for; bob has staked 200 and put up 50.
async function offered() {
  const w = await world();
  await stake(w, w.bob, 200n);
  await open(w, "job", w.alice, 100n);
  await w.escrow.connect(w.operator).offer(JOB, w.bob, 50n);
  return w;
}

async function taken() {
  const w = await offered();
  await w.escrow.connect(w.bob).accept(JOB, 50n);
  return w;
}

const holdings = async (w) => ({
  alice: await w.token.balanceOf(w.alice),
  bob: await w.token.balanceOf(w.bob),
  staked: (await w.staking.positions(w.bob)).staked,
  locked: (await w.staking.positions(w.bob)).locked,
});

describe("JobEscrow", () => {
  it("pays the worker that took it, and gives its bond free", async () => {
    const w = await loadFixture(taken);
    const more = w.staking.connect(w.bob).unstake(151n);
    await expect(more).to.be.revertedWithCustomError(w.staking, "InsufficientStake");
    const another = w.escrow.connect(w.operator).pay(JOB, w.carol);
    await expect(another).to.be.revertedWithCustomError(w.escrow, "BadTerms");
    await w.escrow.connect(w.operator).pay(JOB, w.bob);
    expect(await holdings(w)).to.deep.equal({ alice: 900n, bob: 900n, staked: 200n, locked: 0n });
    const again = w.escrow.connect(w.operator).refund(JOB);
    await expect(again).to.be.revertedWithCustomError(w.escrow, "JobOver");
  });

  it("takes the bond for a wrong result: a part to the client, the rest burned, and the job goes to another", async () => {
    const w = await loadFixture(taken);
    const greedy = w.escrow.connect(w.arbiter).penalise(JOB, 26n); // more than half of the bond
    await expect(greedy).to.be.revertedWithCustomError(w.escrow, "BadTerms");
    await w.escrow.connect(w.arbiter).penalise(JOB, 25n);
    expect(await holdings(w)).to.deep.equal({ alice: 925n, bob: 800n, staked: 150n, locked: 0n });
    expect(await w.token.totalSupply()).to.equal(5_975n);
    await stake(w, w.carol, 60n);
    await w.escrow.connect(w.operator).offer(JOB, w.carol, 60n);
    await w.escrow.connect(w.carol).accept(JOB, 60n);
    await w.escrow.connect(w.operator).pay(JOB, w.carol);
    expect(await w.token.balanceOf(w.carol)).to.equal(1_040n);
    expect((await w.staking.positions(w.carol)).locked).to.equal(0n);
  });

  it("lets a worker go without fault, and the job go to another", async () => {
    const w = await loadFixture(taken);
    await w.escrow.connect(w.operator).release(JOB);
    expect(await holdings(w)).to.deep.equal({ alice: 900n, bob: 800n, staked: 200n, locked: 0n });
    const twice = w.escrow.connect(w.operator).release(JOB);
    await expect(twice).to.be.revertedWithCustomError(w.escrow, "WrongState");
    const late = w.escrow.connect(w.arbiter).penalise(JOB, 0n);
    await expect(late).to.be.revertedWithCustomError(w.escrow, "WrongState");
    await w.escrow.connect(w.operator).pay(JOB, w.carol);
    expect(await w.token.balanceOf(w.carol)).to.equal(1_100n);
  });

  it("gives everything back once the deadline is over, whoever says so: nobody is slashed without a judge", async () => {
    const w = await loadFixture(taken);
    await expect(w.escrow.connect(w.eve).expire(JOB)).to.be.revertedWithCustomError(w.escrow, "TooEarly");
    await time.increase(3601);
    await w.escrow.connect(w.eve).expire(JOB);
    expect(await holdings(w)).to.deep.equal({ alice: 1_000n, bob: 800n, staked: 200n, locked: 0n });
  });

  it("settles a job without a bond at once, and never in the settler's favour", async () => {
    const w = await loadFixture(world);
    await open(w, "job", w.alice, 100n);
    const self = w.escrow.connect(w.operator).pay(JOB, w.operator);
    await expect(self).to.be.revertedWithCustomError(w.escrow, "BadTerms");
    await w.escrow.connect(w.operator).pay(JOB, w.carol);
    expect(await w.token.balanceOf(w.carol)).to.equal(1_100n);
  });

  it("gives an open job back once its deadline is over, though the settler is gone", async () => {
    const w = await loadFixture(world);
    await open(w, "job", w.alice, 100n);
    await time.increase(3601);
    await w.escrow.connect(w.eve).expire(JOB);
    expect(await w.token.balanceOf(w.alice)).to.equal(1_000n);
  });

  it("lets nobody raise a bond at the last moment, and takes no job twice", async () => {
    const w = await loadFixture(world);
    await stake(w, w.bob, 200n);
    await open(w, "job", w.alice, 100n);
    await w.escrow.connect(w.operator).offer(JOB, w.bob, 50n);
    await w.escrow.connect(w.operator).offer(JOB, w.bob, 200n);
    const accept = (bond) => w.escrow.connect(w.bob).accept(JOB, bond);
    await expect(accept(50n)).to.be.revertedWithCustomError(w.escrow, "BadTerms");
    await accept(200n);
    await expect(accept(200n)).to.be.revertedWithCustomError(w.escrow, "WrongState");
    await expect(open(w, "job", w.alice, 1n)).to.be.revertedWithCustomError(w.escrow, "JobExists");
  });

  it("refuses every step to those whose step it is not", async () => {
    for (const [fixture, calls, allowed] of [
      [offered, (e) => [() => e.accept(JOB, 50n)], ["bob"]],
      [taken, (e, w) => [() => e.release(JOB), () => e.pay(JOB, w.bob), () => e.refund(JOB)], ["operator"]],
      [taken, (e) => [() => e.penalise(JOB, 1n)], ["arbiter"]],
    ]) {
      const w = await loadFixture(fixture);
      for (const name of ["alice", "bob", "carol", "operator", "arbiter", "guardian", "deployer"]) {
        if (allowed.includes(name)) continue;
        for (const call of calls(w.escrow.connect(w[name]), w)) await expect(call(), name).to.be.reverted;
      }
    }
    const w = await loadFixture(world);
    for (const call of [() => w.escrow.pay(JOB, w.bob), () => w.escrow.refund(JOB), () => w.escrow.expire(JOB)]) {
      await expect(call()).to.be.revertedWithCustomError(w.escrow, "NoSuchJob");
    }
  });
});
