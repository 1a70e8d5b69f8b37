// What auditors tried on earlier contracts, and got away with.
const { expect } = require("chai");
const { ethers } = require("hardhat");
const { loadFixture, time } = require("@nomicfoundation/hardhat-network-helpers");
const { earnings, equivocation, fund, id, key, open, stake, world } = require("./support");

const JOB = (w, payer = w.alice) => key(payer, "job");

const cheap = () => world({ penalty: 200n });
const vetoed = () => world({ veto: 1_000 });

// Bob has staked 300, all of which he has bound to a job for one token that friends of his pay and settle.
async function shielded() {
  const w = await world({ penalty: 200n });
  await stake(w, w.bob, 300n);
  await open(w, "job", w.alice, 1n, w.carol, 366 * 86_400);
  await w.escrow.connect(w.carol).offer(JOB(w), w.bob, 300n);
  await w.escrow.connect(w.bob).accept(JOB(w), 300n);
  return w;
}

describe("Attacks", () => {
  it("stake that is bound to a job of one's own friends is slashed all the same", async () => {
    const w = await loadFixture(shielded);
    await w.tracker.proveEquivocation(...(await equivocation(w, w.bob)), w.bob);
    const { staked, locked } = await w.staking.positions(w.bob);
    expect([staked, locked]).to.deep.equal([100n, 100n]);
    await w.escrow.connect(w.carol).release(JOB(w)); // and the job goes on
    expect(await w.staking.available(w.bob)).to.equal(100n);
  });

  it("a wrong result still costs its bond where a fault has taken some of it", async () => {
    const w = await loadFixture(shielded);
    await w.tracker.proveEquivocation(...(await equivocation(w, w.bob)), w.bob);
    await stake(w, w.bob, 500n);
    await w.escrow.connect(w.arbiter).penalise(JOB(w), 1n);
    const { staked, locked } = await w.staking.positions(w.bob);
    expect([staked, locked]).to.deep.equal([300n, 0n]);
    expect(await w.token.balanceOf(w.alice)).to.equal(1_000n); // paid 1, got 1
  });

  it("a proof that comes before there is stake costs stake that comes later, up to the penalty", async () => {
    const w = await loadFixture(cheap);
    const proof = await equivocation(w, w.bob);
    const prove = () => w.tracker.connect(w.eve).proveEquivocation(...proof, w.bob);
    await prove();
    await expect(prove()).to.be.revertedWithCustomError(w.tracker, "AlreadyProven");
    await stake(w, w.bob, 150n);
    await prove();
    await stake(w, w.bob, 150n);
    await prove();
    expect((await w.staking.positions(w.bob)).staked).to.equal(100n);
    await expect(prove()).to.be.revertedWithCustomError(w.tracker, "AlreadyProven");
  });

  it("stake is answerable for keys that it vouched for, and for no others", async () => {
    const w = await loadFixture(cheap);
    await stake(w, w.bob, 300n);
    const proof = await equivocation(w, w.carol);
    const prove = () => w.tracker.proveEquivocation(...proof, w.bob);
    await expect(prove()).to.be.revertedWithCustomError(w.tracker, "NotAnswerable");
    await w.tracker.connect(w.bob).vouch(w.carol);
    await prove();
    expect((await w.staking.positions(w.bob)).staked).to.equal(100n);
  });

  it("nobody binds tokens for longer than the longest term", async () => {
    const w = await loadFixture(world);
    await expect(open(w, "job", w.alice, 1n, w.carol, 10 ** 9)).to.be.revertedWithCustomError(w.escrow, "BadTerms");
    await expect(fund(w, "p", w.alice, 1n, w.carol, 10 ** 9)).to.be.revertedWithCustomError(w.rewards, "BadTerms");
  });

  it("an old root claims nothing that is still in the window, and the guardian is not shut out", async () => {
    const w = await loadFixture(vetoed);
    await fund(w, "pool", w.alice, 500n, w.carol, 1e6);
    const pool = key(w.alice, "pool");
    const lie = earnings([[w.bob, 500n]]);
    await w.rewards.connect(w.carol).distribute(pool, 1n, lie.root, ethers.ZeroHash); // promises 500, allots 1
    await time.increase(1_001);
    await w.rewards.connect(w.carol).distribute(pool, 499n, lie.root, ethers.ZeroHash);
    const claim = w.rewards.claim(w.carol, 0n, w.bob, 500n, lie.proof(0));
    await expect(claim).to.be.revertedWithCustomError(w.rewards, "RootPromisesTooMuch");
    await w.rewards.connect(w.guardian).veto(w.carol, 1n);
    expect((await w.rewards.pools(pool)).left).to.equal(499n);
  });

  it("by default, payments can be vetoed for a day", async () => {
    const { rules } = require("../../src/tutti/adapters/chain/system.json");
    expect(rules.veto).to.equal(86_400);
  });

  it("an arbiter judges no job that it has a part in", async () => {
    const w = await loadFixture(world);
    await w.token.connect(w.operator).mint(w.arbiter, 500n);
    await stake(w, w.bob, 500n);
    await stake(w, w.arbiter, 100n);
    await open(w, "job", w.arbiter, 100n, w.carol);
    await w.escrow.connect(w.carol).offer(JOB(w, w.arbiter), w.bob, 400n);
    await w.escrow.connect(w.bob).accept(JOB(w, w.arbiter), 400n);
    const asPayer = w.escrow.connect(w.arbiter).penalise(JOB(w, w.arbiter), 100n);
    await expect(asPayer).to.be.revertedWithCustomError(w.escrow, "NotYours");
    await open(w, "job", w.alice, 100n, w.carol);
    await w.escrow.connect(w.carol).offer(JOB(w), w.arbiter, 50n);
    await w.escrow.connect(w.arbiter).accept(JOB(w), 50n);
    const asWorker = w.escrow.connect(w.arbiter).penalise(JOB(w), 25n);
    await expect(asWorker).to.be.revertedWithCustomError(w.escrow, "NotYours");
  });

  it("no person can take anybody's stake: there is no such call", async () => {
    const w = await loadFixture(world);
    await stake(w, w.bob, 300n);
    for (const who of [w.operator, w.arbiter, w.guardian, w.deployer]) {
      const slash = w.staking.connect(who).slash(w.bob, 300n, id("no reason"));
      await expect(slash).to.be.revertedWithCustomError(w.staking, "AccessControlUnauthorizedAccount");
    }
  });

  it("nobody takes the name of another's job, pool or session away", async () => {
    const w = await loadFixture(world);
    for (const who of [w.eve, w.alice]) {
      await open(w, "job", who, 1n);
      await fund(w, "pool", who, 1n);
    }
    expect((await w.escrow.jobs(key(w.alice, "job"))).payer).to.equal(w.alice.address);
    expect((await w.rewards.pools(key(w.alice, "pool"))).sponsor).to.equal(w.alice.address);
    for (const who of [w.eve, w.operator]) {
      await w.registry.connect(who).open(id("s"), id("spec"), id("data"), 3);
      await w.tracker.connect(who).record(id("s"), 1n, id("root"), 1, id("m"));
    }
    expect(await w.registry.count()).to.equal(2n);
  });

  it("tokens that are sent here by mistake count nowhere", async () => {
    const w = await loadFixture(world);
    await stake(w, w.bob, 10n);
    for (const one of [w.staking, w.escrow, w.rewards]) await w.token.connect(w.eve).transfer(one, 7n);
    expect(await w.staking.totalStaked()).to.equal(10n);
    expect(await w.escrow.totalEscrowed()).to.equal(0n);
    expect((await w.rewards.totalPooled()) + (await w.rewards.totalOwed())).to.equal(0n);
  });
});
