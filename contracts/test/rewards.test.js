const { expect } = require("chai");
const { ethers } = require("hardhat");
const { loadFixture, time } = require("@nomicfoundation/hardhat-network-helpers");
const { deploySystem } = require("../scripts/system");
const { earnings, equivocation, fund, id, key, leaf, proof, root, stake, world } = require("./support");

let POOL; // alice's pool of the name "pool"

before(async () => {
  POOL = key((await ethers.getSigners())[4], "pool");
});

async function funded() {
  const w = await world();
  await fund(w, "pool", w.alice, 500n);
  return w;
}

const distribute = (w, amount, totals, coordinator = w.operator, pool = POOL) =>
  w.rewards.connect(coordinator).distribute(pool, amount, earnings(totals).root, ethers.ZeroHash);

const claim = (w, round, totals, index, coordinator = w.operator) =>
  w.rewards.claim(coordinator, round, totals[index][0], totals[index][1], earnings(totals).proof(index));

describe("RewardDistributor", () => {
  it("pays any number of rounds in one claim, once", async () => {
    const w = await loadFixture(funded);
    const first = [[w.bob, 30n], [w.carol, 10n]];
    const second = [[w.bob, 50n], [w.carol, 10n], [w.dave, 5n]];
    await distribute(w, 40n, first);
    await distribute(w, 25n, second);
    await claim(w, 1n, second, 0);
    expect(await w.token.balanceOf(w.bob)).to.equal(1_050n);
    await expect(claim(w, 1n, second, 0)).to.be.revertedWithCustomError(w.rewards, "NothingOwed");
    await expect(claim(w, 0n, first, 0)).to.be.revertedWithCustomError(w.rewards, "NothingOwed");
    await claim(w, 0n, first, 1);
    await claim(w, 1n, second, 2);
    const third = [[w.bob, 57n], [w.carol, 10n], [w.dave, 5n]];
    await distribute(w, 7n, third);
    await claim(w, 2n, third, 0);
    expect(await w.token.balanceOf(w.bob)).to.equal(1_057n);
    await expect(claim(w, 2n, third, 0)).to.be.revertedWithCustomError(w.rewards, "NothingOwed");
    expect(await w.rewards.totalOwed()).to.equal(0n);
  });

  it("takes no proof for another sum, account, round or coordinator", async () => {
    const w = await loadFixture(funded);
    const totals = [[w.bob, 30n], [w.carol, 10n]];
    await distribute(w, 40n, totals);
    const path = earnings(totals).proof(0);
    for (const [who, total, steps] of [[w.bob, 31n, path], [w.eve, 30n, path], [w.bob, 30n, []]]) {
      const call = w.rewards.claim(w.operator, 0n, who, total, steps);
      await expect(call).to.be.revertedWithCustomError(w.rewards, "BadProof");
    }
    await expect(claim(w, 1n, totals, 0)).to.be.revertedWithCustomError(w.rewards, "NoSuchRound");
    await expect(claim(w, 0n, totals, 0, w.eve)).to.be.revertedWithCustomError(w.rewards, "NoSuchRound");
  });

  it("never pays more than was allotted, and not out of another coordinator's pools", async () => {
    const w = await loadFixture(funded);
    await fund(w, "other", w.dave, 300n, w.eve);
    await distribute(w, 300n, [[w.frank, 300n]], w.eve, key(w.dave, "other"));
    const lies = [[w.bob, 30n], [w.carol, 30n]];
    await distribute(w, 40n, lies);
    await claim(w, 0n, lies, 0);
    await expect(claim(w, 0n, lies, 1)).to.be.revertedWithCustomError(w.rewards, "RootPromisesTooMuch");
    await expect(distribute(w, 461n, lies)).to.be.revertedWithCustomError(w.rewards, "PoolTooSmall");
    await expect(distribute(w, 1n, lies, w.eve)).to.be.revertedWithCustomError(w.rewards, "NotYours");
    await claim(w, 0n, [[w.frank, 300n]], 0, w.eve);
    expect(await w.token.balanceOf(w.frank)).to.equal(1_300n);
  });

  it("returns what is left: by the coordinator, or by anybody after the deadline", async () => {
    const w = await loadFixture(funded);
    await distribute(w, 100n, [[w.bob, 100n]]);
    await expect(w.rewards.connect(w.alice).refund(POOL)).to.be.revertedWithCustomError(w.rewards, "NotYours");
    await time.increase(3601);
    await w.rewards.connect(w.eve).refund(POOL);
    expect(await w.token.balanceOf(w.alice)).to.equal(900n);
    await expect(distribute(w, 1n, [[w.bob, 101n]])).to.be.revertedWithCustomError(w.rewards, "PoolOver");
    await claim(w, 0n, [[w.bob, 100n]], 0);
    await expect(fund(w, "pool", w.alice, 1n)).to.be.revertedWithCustomError(w.rewards, "PoolExists");
  });

  it("lets the guardian take back rounds that are not valid yet, and no others", async () => {
    const [, operator, arbiter, guardian, alice, bob] = await ethers.getSigners();
    const system = await deploySystem(ethers, { operator, arbiter, guardian, veto: 1_000 });
    const w = { ...system, operator, arbiter, guardian, alice, bob };
    await w.token.connect(operator).mint(alice, 1_000n);
    await fund(w, "pool", alice, 500n, operator, 1e6);
    await distribute(w, 10n, [[bob, 10n]]);
    await expect(claim(w, 0n, [[bob, 10n]], 0)).to.be.revertedWithCustomError(w.rewards, "NotYetValid");
    await time.increase(1_001);
    await distribute(w, 400n, [[bob, 410n]]);
    await expect(w.rewards.connect(operator).veto(operator, 1n)).to.be.revertedWithCustomError(
      w.rewards, "AccessControlUnauthorizedAccount");
    await expect(w.rewards.connect(guardian).veto(operator, 0n)).to.be.revertedWithCustomError(
      w.rewards, "VetoedTooLate");
    await w.rewards.connect(operator).refund(POOL);
    await w.rewards.connect(guardian).veto(operator, 1n);
    expect(await w.token.balanceOf(alice)).to.equal(990n);
    await claim(w, 0n, [[bob, 10n]], 0);
    expect(await w.token.balanceOf(w.rewards)).to.equal(0n);
  });

  it("goes on paying while it is paused", async () => {
    const w = await loadFixture(funded);
    await w.rewards.connect(w.guardian).pause();
    await expect(fund(w, "more", w.alice, 1n)).to.be.revertedWithCustomError(w.rewards, "EnforcedPause");
    await distribute(w, 10n, [[w.bob, 10n]]);
    await claim(w, 0n, [[w.bob, 10n]], 0);
    await w.rewards.connect(w.operator).refund(POOL);
  });
});

describe("TrainingRegistry and ContributionTracker", () => {
  const S = id("session");
  const records = ["a", "bb", "ccc"].map((text) => ethers.hexlify(ethers.toUtf8Bytes(text)));
  const leaves = records.map(leaf);

  async function opened() {
    const w = await world();
    await w.registry.connect(w.operator).open(S, id("spec"), id("data"), 3);
    return w;
  }

  it("records a round once, for the session's owner, until it is closed", async () => {
    const w = await loadFixture(opened);
    const record = (who, round) => w.tracker.connect(who).record(S, round, root(leaves), 3, id("m"));
    await expect(record(w.eve, 1n)).to.be.revertedWithCustomError(w.registry, "NoSuchSession");
    await record(w.operator, 1n);
    await expect(record(w.operator, 1n)).to.be.revertedWithCustomError(w.tracker, "AlreadyRecorded");
    await expect(w.registry.connect(w.eve).close(S, id("m"))).to.be.revertedWithCustomError(w.registry, "NoSuchSession");
    await w.registry.connect(w.operator).close(S, id("m"));
    await expect(record(w.operator, 2n)).to.be.revertedWithCustomError(w.registry, "SessionOver");
    const again = w.registry.connect(w.operator).open(S, id("s"), id("d"), 1);
    await expect(again).to.be.revertedWithCustomError(w.registry, "SessionExists");
  });

  it("verifies each contribution of a round, and nothing else", async () => {
    const w = await loadFixture(opened);
    await w.tracker.connect(w.operator).record(S, 1n, root(leaves), 3, id("m"));
    for (const [i, record] of records.entries()) {
      expect(await w.tracker.verify(w.operator, S, 1n, record, proof(leaves, i))).to.equal(true);
      expect(await w.tracker.verify(w.operator, S, 2n, record, proof(leaves, i))).to.equal(false);
      expect(await w.tracker.verify(w.operator, S, 1n, record + "00", proof(leaves, i))).to.equal(false);
    }
    const inner = ethers.concat([leaves[0], leaves[1]]); // no inner node passes for a leaf
    expect(await w.tracker.verify(w.operator, S, 1n, inner, [leaves[2]])).to.equal(false);
  });

  it("slashes a node that signed two updates under one number, once, without an arbiter", async () => {
    const w = await loadFixture(opened);
    await stake(w, w.bob, 1_000n);
    const prove = async (how) => w.tracker.connect(w.eve).proveEquivocation(...(await equivocation(w, w.bob, how)), w.bob);
    for (const none of [{ hashes: ["a", "a"] }, { signers: [w.bob, w.carol] }, { nonces: [0n, 1n] }]) {
      await expect(prove(none)).to.be.revertedWithCustomError(w.tracker, "NoEquivocation");
    }
    await prove({});
    expect((await w.staking.positions(w.bob)).staked).to.equal(0n);
    await expect(prove({ hashes: ["b", "a"] })).to.be.revertedWithCustomError(w.tracker, "AlreadyProven");
  });
});
