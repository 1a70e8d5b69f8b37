const { expect } = require("chai");
const { loadFixture, time } = require("@nomicfoundation/hardhat-network-helpers");
const { id, open, stake, world } = require("./support");
const { WINDOW } = require("../scripts/system");

const JOB = id("job");

// A job of 100 tokens that alice pays for; bob has staked 200 and put up 50.
async function taken() {
  const w = await world();
  await stake(w, w.bob, 200n);
  await open(w, "job", w.alice, 100n);
  await w.escrow.connect(w.operator).offer(JOB, w.bob, 50n);
  await w.escrow.connect(w.bob).accept(JOB, 50n);
  return w;
}

async function submitted() {
  const w = await taken();
  await w.escrow.connect(w.bob).submit(JOB, id("result"));
  return w;
}

async function disputed() {
  const w = await submitted();
  await w.escrow.connect(w.operator).dispute(JOB);
  return w;
}

const holdings = async (w) => ({
  alice: await w.token.balanceOf(w.alice),
  bob: await w.token.balanceOf(w.bob),
  staked: (await w.staking.positions(w.bob)).staked,
  locked: (await w.staking.positions(w.bob)).locked,
});

describe("JobEscrow", () => {
  it("pays a worker that delivered, and gives its bond free", async () => {
    const w = await loadFixture(submitted);
    const more = w.staking.connect(w.bob).unstake(151n);
    await expect(more).to.be.revertedWithCustomError(w.staking, "InsufficientStake");
    await w.escrow.connect(w.operator).pay(JOB, w.bob);
    expect(await holdings(w)).to.deep.equal({ alice: 900n, bob: 900n, staked: 200n, locked: 0n });
    const again = w.escrow.connect(w.operator).refund(JOB);
    await expect(again).to.be.revertedWithCustomError(w.escrow, "JobOver");
    expect(await w.escrow.reputation(w.bob)).to.equal(100n);
  });

  it("pays a result that nobody disputes, whoever says so after the window", async () => {
    const w = await loadFixture(submitted);
    await expect(w.escrow.connect(w.eve).expire(JOB)).to.be.revertedWithCustomError(w.escrow, "TooEarly");
    await time.increase(WINDOW + 1);
    const late = w.escrow.connect(w.operator).dispute(JOB);
    await expect(late).to.be.revertedWithCustomError(w.escrow, "TooLate");
    await w.escrow.connect(w.eve).expire(JOB);
    expect((await holdings(w)).bob).to.equal(900n);
  });

  it("takes the bond of a worker that was judged wrong: half to the client, half burned", async () => {
    const w = await loadFixture(disputed);
    await w.escrow.connect(w.arbiter).judge(JOB, false);
    expect(await holdings(w)).to.deep.equal({ alice: 1_025n, bob: 800n, staked: 150n, locked: 0n });
    expect(await w.token.totalSupply()).to.equal(5_975n);
    expect(await w.escrow.reputation(w.bob)).to.equal(50n);
  });

  it("pays a worker that was judged right", async () => {
    const w = await loadFixture(disputed);
    await w.escrow.connect(w.arbiter).judge(JOB, true);
    expect(await holdings(w)).to.deep.equal({ alice: 900n, bob: 900n, staked: 200n, locked: 0n });
  });

  it("slashes nobody without a judge: an undecided dispute is refunded", async () => {
    const w = await loadFixture(disputed);
    await time.increase(WINDOW + 1);
    await w.escrow.connect(w.eve).expire(JOB);
    expect(await holdings(w)).to.deep.equal({ alice: 1_000n, bob: 800n, staked: 200n, locked: 0n });
  });

  it("refunds a job whose worker never delivered, and takes the bond", async () => {
    const w = await loadFixture(taken);
    await time.increase(3601);
    await expect(w.escrow.connect(w.bob).submit(JOB, id("r"))).to.be.revertedWithCustomError(w.escrow, "TooLate");
    await w.escrow.connect(w.eve).expire(JOB);
    expect(await holdings(w)).to.deep.equal({ alice: 1_025n, bob: 800n, staked: 150n, locked: 0n });
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
    await expect(open(w, "job", w.carol, 1n)).to.be.revertedWithCustomError(w.escrow, "JobExists");
  });

  it("refuses every step to those whose step it is not", async () => {
    for (const [fixture, calls, allowed] of [
      [taken, (e) => [() => e.submit(JOB, id("r")), () => e.accept(JOB, 50n)], ["bob"]],
      [submitted, (e, w) => [() => e.dispute(JOB), () => e.pay(JOB, w.bob)], ["operator"]],
      [disputed, (e) => [() => e.judge(JOB, true)], ["arbiter"]],
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
