// Random calls by random people, valid or not; after each one, everything that must always hold. A run is repeated by
// its seed. The canaries fail if the runs have become so tame that they reach nothing.
const { expect } = require("chai");
const { ethers } = require("hardhat");
const { loadFixture, time } = require("@nomicfoundation/hardhat-network-helpers");
const { chance, coder, earnings, id, world } = require("./support");

const SEEDS = (process.env.SEEDS ?? "1,2").split(",").map(Number);
const STEPS = Number(process.env.STEPS ?? 400);
const NAMES = [...Array(24).keys()].map((i) => id(`e${i}`));
const [OPEN, ASSIGNED] = [1n, 2n];

function operations(w, random, books) {
  const who = () => random.pick(w.people);
  const anyone = () => random.pick([...w.people, w.operator, w.arbiter, w.guardian, w.deployer]);
  const mostly = (right) => (random.next() < 0.85 ? right : anyone());
  const amount = () => BigInt(random.below(120));
  const name = () => random.pick(NAMES);
  const deadline = () => books.now + BigInt(random.pick([10, 30_000, 900_000]));
  const pay = (to, data) => w.token.connect(who())["transferAndCall(address,uint256,bytes)"](to, amount(), data);
  const termsOf = (settler) => coder.encode(["bytes32", "address", "uint64"], [name(), settler.address, deadline()]);
  const worker = async (job) => w.people.find((p) => p.address === job.worker) ?? who();
  // Mostly a job in the state that the call needs, else any.
  const job = async (...states) => {
    const all = await Promise.all(NAMES.map(async (each) => [each, await w.escrow.jobs(each)]));
    const fitting = all.filter(([, found]) => states.includes(found.state));
    return random.pick(fitting.length && random.next() < 0.85 ? fitting : all);
  };
  const pool = async () => {
    const all = await Promise.all(NAMES.map(async (each) => [each, await w.rewards.pools(each)]));
    const living = all.filter(([, found]) => found.left > 0n).map(([each]) => each);
    return random.pick(living.length && random.next() < 0.85 ? living : NAMES);
  };
  return {
    stake: () => pay(w.staking.target, "0x"),
    unstake: () => w.staking.connect(who()).unstake(amount()),
    withdraw: () => w.staking.connect(who()).withdraw(),
    slash: () => w.staking.connect(mostly(w.arbiter)).slash(who(), amount(), who(), amount() / 4n, id("x")),
    open: () => pay(w.escrow.target, termsOf(w.operator)),
    offer: async () => {
      const [chosen] = await job(OPEN);
      return w.escrow.connect(mostly(w.operator)).offer(chosen, who(), BigInt(random.below(30)));
    },
    accept: async () => {
      const [chosen, found] = await job(OPEN);
      return w.escrow.connect(mostly(await worker(found))).accept(chosen, found.bond);
    },
    release: async () => w.escrow.connect(mostly(w.operator)).release((await job(ASSIGNED))[0]),
    penalise: async () => {
      const [chosen, found] = await job(ASSIGNED);
      return w.escrow.connect(mostly(w.arbiter)).penalise(chosen, BigInt(random.below(Number(found.bond) + 2)));
    },
    pay: async () => {
      const [chosen, found] = await job(OPEN, ASSIGNED);
      return w.escrow.connect(mostly(w.operator)).pay(chosen, await worker(found));
    },
    refundJob: () => w.escrow.connect(mostly(w.operator)).refund(name()),
    expire: async () => w.escrow.connect(anyone()).expire((await job(OPEN, ASSIGNED))[0]),
    fund: () => pay(w.rewards.target, termsOf(w.operator)),
    distribute: async () => {
      const [to, more] = [who(), BigInt(random.below(40))];
      const before = books.published.at(-1) ?? new Map();
      const totals = new Map(before).set(to, (before.get(to) ?? 0n) + more);
      const { root } = earnings([...totals]);
      const sent = await w.rewards.connect(mostly(w.operator)).distribute(await pool(), more, root, ethers.ZeroHash);
      books.published.push(totals);
      return sent;
    },
    // Of the rounds that can still be taken back, mostly; the books forget what the contract takes back.
    veto: async () => {
      const from = Math.max(0, books.published.length - 1 - random.below(3));
      const sent = await w.rewards.connect(mostly(w.guardian)).veto(w.operator, from);
      books.published.length = from;
      return sent;
    },
    claim: () => {
      const round = Math.max(0, books.published.length - 1 - random.below(3));
      const totals = [...(books.published[round] ?? [])];
      const index = random.below(totals.length || 1);
      const [to, total] = totals[index] ?? [who(), 1n];
      const lie = random.next() < 0.2 ? BigInt(random.below(9)) : 0n;
      return w.rewards.claim(w.operator, round, to, total + lie, earnings(totals).proof(index));
    },
    refundPool: () => w.rewards.connect(mostly(w.operator)).refund(name()),
    pass: () => time.increase(random.pick([60, 4_000, 20_000, 90_000, 700_000])),
  };
}

const ESCROW = ["open", "offer", "offer", "accept", "accept", "accept", "release", "penalise"];
const CALLS = ["stake", "unstake", "withdraw", "slash", "pay", "refundJob", "expire", "fund", "distribute", "distribute", "claim",
  "claim", "veto", "refundPool", "pass", ...ESCROW, ...ESCROW];

const of = (list) => list.reduce((sum, one) => sum + one, 0n);

async function check(w, books) {
  const balance = (contract) => w.token.balanceOf(contract);
  const positions = await Promise.all(w.people.map((p) => w.staking.positions(p)));
  const jobs = await Promise.all(NAMES.map((name) => w.escrow.jobs(name)));
  const pools = await Promise.all(NAMES.map((name) => w.rewards.pools(name)));
  const live = jobs.filter((job) => job.state === OPEN || job.state === ASSIGNED);
  expect(await balance(w.staking)).to.equal((await w.staking.totalStaked()) + (await w.staking.totalUnbonding()));
  expect(await w.staking.totalStaked()).to.equal(of(positions.map((p) => p.staked)));
  expect(await w.staking.totalUnbonding()).to.equal(of(positions.map((p) => p.unbonding)));
  expect(await balance(w.escrow)).to.equal(await w.escrow.totalEscrowed());
  expect(await w.escrow.totalEscrowed()).to.equal(of(live.map((job) => job.amount)));
  expect(await balance(w.rewards)).to.equal((await w.rewards.totalPooled()) + (await w.rewards.totalOwed()));
  expect(await w.rewards.totalPooled()).to.equal(of(pools.map((pool) => pool.left)));
  expect(await w.rewards.totalOwed()).to.equal(
    (await w.rewards.allotted(w.operator)) - (await w.rewards.paid(w.operator)));
  const claimed = await Promise.all(w.people.map((p) => w.rewards.claimed(w.operator, p)));
  expect(of(claimed)).to.equal(await w.rewards.paid(w.operator));
  const promised = of([...(books.published.at(-1) ?? new Map()).values()]);
  expect(promised).to.equal(await w.rewards.allotted(w.operator));
  expect(BigInt(books.published.length)).to.equal(await w.rewards.roundCount(w.operator));
  for (const [i, person] of w.people.entries()) {
    const bonds = live.filter((job) => job.state === ASSIGNED && job.worker === person.address).map((job) => job.bond);
    expect(positions[i].locked).to.equal(of(bonds));
    expect(positions[i].locked).to.be.at.most(positions[i].staked);
  }
  const everybody = await Promise.all([...w.people, w.staking, w.escrow, w.rewards].map(balance));
  expect(of(everybody)).to.equal(await w.token.totalSupply());
  for (const who of [w.operator, w.arbiter, w.guardian, w.deployer]) expect(await balance(who)).to.equal(0n);
}

// From wherever a run has ended, everybody gets everything out; the contracts are empty then.
async function leave(w, books) {
  await time.increase(1e7);
  for (const name of NAMES) {
    await w.escrow.expire(name).catch(() => null);
    await w.rewards.connect(w.alice).refund(name).catch(() => null);
  }
  const totals = [...(books.published.at(-1) ?? [])];
  const last = books.published.length - 1;
  for (const [index, [to, total]] of totals.entries()) {
    if ((await w.rewards.claimed(w.operator, to)) < total) {
      await w.rewards.claim(w.operator, last, to, total, earnings(totals).proof(index));
    }
  }
  for (const person of w.people) {
    const { staked } = await w.staking.positions(person);
    if (staked > 0n) await w.staking.connect(person).unstake(staked);
  }
  await time.increase(1e7);
  for (const person of w.people) await w.staking.connect(person).withdraw().catch(() => null);
  for (const contract of [w.staking, w.escrow, w.rewards]) expect(await w.token.balanceOf(contract)).to.equal(0n);
}

const withVeto = () => world({ veto: 20_000 });

describe("Invariants", () => {
  const reached = {};

  for (const seed of SEEDS) {
    it(`hold through ${STEPS} random calls, seed ${seed}`, async () => {
      const w = await loadFixture(withVeto);
      const random = chance(seed);
      const books = { published: [], now: 0n };
      const all = operations(w, random, books);
      for (let step = 0; step < STEPS; step++) {
        books.now = BigInt(await time.latest());
        await time.setNextBlockTimestamp(books.now + 1n); // not the clock of this machine: a run must repeat itself
        const name = random.pick(CALLS);
        const done = await all[name]().then(() => true, (error) => {
          if (!/revert/.test(error.message)) throw error;
          return false;
        });
        reached[name] = (reached[name] ?? 0) + (done ? 1 : 0);
        if (done) await check(w, books).catch((error) => { throw new Error(`step ${step}, ${name}: ${error.message}`); });
      }
      const slashed = await w.staking.queryFilter(w.staking.filters.Slashed());
      reached.bondsLost = (reached.bondsLost ?? 0) + slashed.filter((e) => e.args.reason !== id("x")).length;
      await leave(w, books);
    });
  }

  it("are tested where it matters: every operation has succeeded, and bonds were lost (canary)", () => {
    const tame = Object.entries(reached).filter(([, times]) => times === 0).map(([name]) => name);
    expect(tame, JSON.stringify(reached)).to.deep.equal([]);
  });
});
