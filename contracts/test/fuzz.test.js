// Random calls by everybody, roles included, each also in parts that are not theirs: payer, settler, worker, sponsor and
// coordinator of their own jobs and pools. After each call that went through, who has what is compared with what that
// call may move, and nothing else; then the sums. A failing run is shrunk, and printed with its seed:
//
//   npm test                                        a fixed seed
//   npm run fuzz                                    ten times as many calls, a new seed
//   FUZZ_SEED=5 FUZZ_RUNS=100 npm run fuzz          any other
const { expect } = require("chai");
const { ethers } = require("hardhat");
const fc = require("fast-check");
const { loadFixture, mine, time } = require("@nomicfoundation/hardhat-network-helpers");
const { coder, earnings, equivocation, id, key, stake, world } = require("./support");

const SEED = Number(process.env.FUZZ_SEED ?? 20_261_128);
const RUNS = Number(process.env.FUZZ_RUNS ?? 60);
const STEPS = 120;
const PENALTY = 70n;
const VETO = 20_000;
const [NONE, OPEN, ASSIGNED] = [0n, 1n, 2n];

// -- the calls, as data ------------------------------------------------------------------------------------------

const LARGE = [2n ** 53n, 2n ** 96n - 1n, 2n ** 96n, 2n ** 128n, 2n ** 256n - 1n];
const who = fc.nat(7);
const pick = fc.nat(1_000);
const amount = fc.oneof(
  { weight: 12, arbitrary: fc.bigInt(1n, 90n) },
  { weight: 1, arbitrary: fc.constantFrom(0n, 1n, 2n, ...LARGE) },
);
const term = fc.oneof(
  { weight: 8, arbitrary: fc.constantFrom(10, 30_000, 900_000, 366 * 86_400) },
  { weight: 1, arbitrary: fc.constantFrom(-1, 0, 367 * 86_400, 2 ** 40) },
);
const right = fc.nat(9).map((n) => n > 0); // whether the caller is who should call, if that is somebody

const CALLS = {
  stake: [4, { who, amount }],
  unstake: [2, { who, amount }],
  withdraw: [3, { pick }],
  transfer: [2, { who, to: fc.nat(10), amount }], // to contracts, too
  burn: [1, { who, amount }],
  mint: [1, { who, right, to: who, amount }],
  grant: [1, { who, pick }],
  pause: [1, { who, right, pick }],
  unpause: [5, { who, right, pick }],
  open: [5, { who, settler: who, name: fc.nat(3), amount, term }],
  offer: [8, { who, right, pick, worker: who, amount }],
  accept: [9, { who, right, pick }],
  release: [1, { who, right, pick }],
  penalise: [3, { who, right, pick, amount }],
  pay: [2, { who, right, pick, to: who }],
  refundJob: [1, { who, right, pick }],
  expire: [2, { who, pick }],
  fund: [4, { who, coordinator: who, name: fc.nat(3), amount, term }],
  distribute: [6, { who, right, pick, to: who, amount, lie: fc.constantFrom(0n, 0n, 0n, 1n, 300n) }],
  claim: [8, { coordinator: pick, pick, back: fc.nat(2), lie: fc.constantFrom(0n, 0n, 0n, 0n, 5n) }],
  veto: [2, { who, right, coordinator: pick, back: fc.nat(2) }],
  refundPool: [1, { who, right, pick }],
  vouch: [1, { who, signer: who }],
  prove: [3, { signer: who, staker: who, right, nonce: fc.nat(1) }],
  pass: [5, { seconds: fc.constantFrom(1, 60, 4_000, 20_000, 90_000, 700_000, 700_000) }],
};
const call = fc.oneof(
  ...Object.entries(CALLS).map(([op, [weight, fields]]) => ({
    weight, arbitrary: fc.record({ op: fc.constant(op), ...fields }),
  })),
);

// -- what is expected --------------------------------------------------------------------------------------------

const min = (...values) => values.reduce((a, b) => (a < b ? a : b));
const of = (list) => list.reduce((sum, one) => sum + one, 0n);
const live = (job) => job.state === OPEN || job.state === ASSIGNED;
const at = (position) => position.staked + position.unbonding;

class Run {
  constructor(w) {
    this.w = w;
    this.people = [w.alice, w.bob, w.carol, w.dave, w.operator, w.arbiter, w.guardian, w.deployer];
    this.contracts = [w.staking, w.escrow, w.rewards];
    this.jobs = new Set();
    this.pools = new Set();
    this.stray = [0n, 0n, 0n];
    this.rounds = new Map(); // by coordinator: what is published, and may be vetoed
    this.claimed = new Map(); // by coordinator and account
    this.taken = new Map(); // by fault and staker
    this.vouched = new Set();
  }

  async look() {
    const [people, jobs, pools, sums] = await this.w.lens.look(this.people, [...this.jobs], [...this.pools]);
    const named = (keys, found) => new Map([...keys].map((each, i) => [each, found[i].toObject()]));
    const found = new Map(this.people.map((person, i) => [person.address, people[i].toObject()]));
    return { people: found, jobs: named(this.jobs, jobs), pools: named(this.pools, pools), sums: sums.toObject() };
  }

  async start() {
    this.now = await time.latest();
    this.state = await this.look();
  }

  // One of those in the state that the call needs, mostly, else any, else one that does not exist.
  choose(all, number, fits) {
    const some = [...all].filter(([, one]) => fits(one));
    const list = some.length && number % 10 ? some : [...all];
    return list.length ? list[number % list.length] : [id("none"), { state: NONE, left: 0n }];
  }

  published(coordinator) {
    return this.rounds.get(coordinator) ?? [];
  }

  // Who has what: free, at stake, set aside.
  wealth(state, address) {
    const mine = [...state.jobs.values()].filter((job) => live(job) && job.payer === address).map((job) => job.amount);
    const pools = [...state.pools.values()].filter((pool) => pool.sponsor === address).map((pool) => pool.left);
    return state.people.get(address).balance + at(state.people.get(address)) + of(mine) + of(pools);
  }

  async step(given, reached) {
    this.now += 1;
    await time.setNextBlockTimestamp(this.now); // not the clock of this machine: a run must repeat itself
    const before = this.state;
    const plan = await this[given.op](given, before);
    if (plan === null) return;
    const done = await plan.send().then(() => true, (error) => {
      if (!/revert|out-of-bounds/.test(error.message)) throw error;
      return false;
    });
    this.now = await time.latest();
    if (done && plan.may === false) throw new Error(`${given.op} was carried out for somebody who may not`);
    if (!done && plan.must) throw new Error(`${given.op} was refused, which nothing may`);
    if (!done) return;
    reached[given.op] = (reached[given.op] ?? 0) + 1;
    plan.after?.();
    this.state = await this.look();
    this.compare(before, new Map(plan.moves ?? []), given.op);
    this.check();
  }

  compare(before, moves, op) {
    for (const { address } of this.people) {
      const moved = this.wealth(this.state, address) - this.wealth(before, address);
      expect(moved, `${op} moves tokens of ${address}`).to.equal(moves.get(address) ?? 0n);
    }
  }

  check() {
    const { people, jobs, pools, sums } = this.state;
    const positions = [...people.values()];
    const living = [...jobs.values()].filter(live);
    expect(sums.staked, "stake").to.equal(of(positions.map((one) => one.staked)));
    expect(sums.unbonding, "unbonding").to.equal(of(positions.map((one) => one.unbonding)));
    expect(sums.escrowed, "escrow").to.equal(of(living.map((job) => job.amount)));
    expect(sums.pooled, "pools").to.equal(of([...pools.values()].map((pool) => pool.left)));
    expect(sums.inStaking, "tokens of Staking").to.equal(sums.staked + sums.unbonding + this.stray[0]);
    expect(sums.inEscrow, "tokens of JobEscrow").to.equal(sums.escrowed + this.stray[1]);
    expect(sums.inRewards, "tokens of RewardDistributor").to.equal(sums.pooled + sums.owed + this.stray[2]);
    const held = of(positions.map((one) => one.balance)) + sums.inStaking + sums.inEscrow + sums.inRewards;
    expect(sums.supply, "supply").to.equal(held);
    const due = [...this.rounds].map(([coordinator, rounds]) => (rounds.at(-1)?.upTo ?? 0n) - this.paid(coordinator));
    expect(sums.owed, "owed").to.equal(of(due));
    for (const [address, one] of people) {
      const bonds = living.filter((job) => job.state === ASSIGNED && job.worker === address).map((job) => job.bond);
      expect(one.locked <= one.staked, "no more is locked than staked").to.equal(true);
      expect(one.locked <= of(bonds), "no more is locked than there are bonds").to.equal(true);
    }
  }

  paid(coordinator) {
    return of([...(this.claimed.get(coordinator) ?? new Map()).values()]);
  }

  // -- each call: how it is sent, who may, what it moves ---------------------------------------------------------

  by(right, should, number) {
    return right && should ? this.people.find((one) => one.address === should) ?? this.people[number] : this.people[number];
  }

  into(contract, from, value, data) {
    return () => this.w.token.connect(from)["transferAndCall(address,uint256,bytes)"](contract.target, value, data);
  }

  stake({ who, amount }) {
    return { send: this.into(this.w.staking, this.people[who], amount, "0x") };
  }

  unstake({ who, amount }) {
    return { send: () => this.w.staking.connect(this.people[who]).unstake(amount) };
  }

  withdraw({ pick }, { people }) {
    const [address, { unbonding, due }] = this.choose(people, pick, (one) => one.unbonding > 0n && one.due <= BigInt(this.now));
    const person = this.people.find((one) => one.address === address);
    const ripe = unbonding > 0n && BigInt(this.now) >= due;
    return { send: () => this.w.staking.connect(person).withdraw(), may: ripe, must: ripe };
  }

  transfer({ who, to, amount }) {
    const person = this.people[who];
    const target = this.people[to]?.address ?? this.contracts[to - 8].target;
    const moves = to < 8 ? (to === who ? [] : [[person.address, -amount], [target, amount]]) : [[person.address, -amount]];
    const after = () => { if (to >= 8) this.stray[to - 8] += amount; };
    return { send: () => this.w.token.connect(person).transfer(target, amount), moves, after };
  }

  burn({ who, amount }) {
    const person = this.people[who];
    return { send: () => this.w.token.connect(person).burn(amount), moves: [[person.address, -amount]] };
  }

  mint({ who, right, to, amount }) {
    const person = this.by(right, this.w.operator.address, who);
    const target = this.people[to].address;
    const may = person === this.w.operator;
    return { send: () => this.w.token.connect(person).mint(target, amount), may, moves: [[target, amount]] };
  }

  grant({ who, pick }) {
    const person = this.people[who];
    const contract = [this.w.token, ...this.contracts][pick % 4];
    const names = ["MINTER_ROLE", "FAULT_ROLE", "BOND_ROLE", "ARBITER_ROLE", "GUARDIAN_ROLE", "PAUSER_ROLE"];
    const role = pick % 7 < 6 ? ethers.id(names[pick % 7]) : ethers.ZeroHash;
    return { send: () => contract.connect(person).grantRole(role, person), may: false };
  }

  pause({ who, right, pick }) {
    const person = this.by(right, this.w.guardian.address, who);
    return { send: () => this.contracts[pick % 3].connect(person).pause(), may: person === this.w.guardian };
  }

  unpause({ who, right, pick }) {
    const person = this.by(right, this.w.guardian.address, who);
    return { send: () => this.contracts[pick % 3].connect(person).unpause(), may: person === this.w.guardian };
  }

  terms(name, who, term) {
    return coder.encode(["bytes32", "address", "uint64"], [id(`n${name}`), who.address, BigInt(Math.max(this.now + term, 0))]);
  }

  open({ who, settler, name, amount, term }) {
    const person = this.people[who];
    const send = this.into(this.w.escrow, person, amount, this.terms(name, this.people[settler], term));
    const may = amount > 0n && term > 0 && term <= 366 * 86_400;
    return { send, may, after: () => this.jobs.add(key(person, `n${name}`)) };
  }

  offer({ who, right, pick, worker, amount }, { jobs }) {
    const [job, { settler, state, payer }] = this.choose(jobs, pick, (one) => one.state === OPEN);
    const person = this.by(right, settler, who);
    const to = this.people[worker];
    const may = state === OPEN && person.address === settler && ![settler, payer].includes(to.address);
    return { send: () => this.w.escrow.connect(person).offer(job, to, amount / 2n), may };
  }

  accept({ who, right, pick }, { jobs }) {
    const offered = (one) => one.state === OPEN && one.worker !== ethers.ZeroAddress;
    const [job, { worker, bond, state }] = this.choose(jobs, pick, offered);
    const person = this.by(right, worker, who);
    const may = state === OPEN && person.address === worker;
    return { send: () => this.w.escrow.connect(person).accept(job, bond ?? 0n), may };
  }

  release({ who, right, pick }, { jobs }) {
    const [job, { settler, state }] = this.choose(jobs, pick, (one) => one.state === ASSIGNED);
    const person = this.by(right, settler, who);
    const may = state === ASSIGNED && person.address === settler;
    return { send: () => this.w.escrow.connect(person).release(job), may, must: may };
  }

  penalise({ who, right, pick, amount }, { jobs, people }) {
    const [job, found] = this.choose(jobs, pick, (one) => one.state === ASSIGNED);
    const person = this.by(right, this.w.arbiter.address, who);
    const { payer, worker, settler, bond, state } = found;
    const stranger = ![payer, worker, settler].includes(person.address);
    const may = state === ASSIGNED && person === this.w.arbiter && stranger;
    if (!may) return { send: () => this.w.escrow.connect(person).penalise(job, amount), may };
    const taken = min(bond, at(people.get(worker)));
    const compensation = min(amount, found.amount, bond / 2n);
    const paid = min(compensation, taken);
    const moves = [[worker, -taken], [payer, paid]];
    return { send: () => this.w.escrow.connect(person).penalise(job, compensation), may, must: may, moves };
  }

  pay({ who, right, pick, to }, { jobs }) {
    const [job, { settler, payer, worker, state, amount }] = this.choose(jobs, pick, live);
    const person = this.by(right, settler, who);
    const target = state === ASSIGNED && right ? worker : this.people[to].address;
    const fits = state === OPEN || (state === ASSIGNED && target === worker);
    const may = person.address === settler && target !== settler && fits;
    const moves = target === payer ? [] : [[payer, -amount], [target, amount]];
    return { send: () => this.w.escrow.connect(person).pay(job, target), may, must: may, moves };
  }

  refundJob({ who, right, pick }, { jobs }) {
    const [job, { settler, state }] = this.choose(jobs, pick, live);
    const person = this.by(right, settler, who);
    const may = person.address === settler && (state === OPEN || state === ASSIGNED);
    return { send: () => this.w.escrow.connect(person).refund(job), may, must: may };
  }

  expire({ who, pick }, { jobs }) {
    const [job, { state, deadline }] = this.choose(jobs, pick, (one) => live(one) && one.deadline < BigInt(this.now));
    const over = (state === OPEN || state === ASSIGNED) && BigInt(this.now) > deadline;
    return { send: () => this.w.escrow.connect(this.people[who]).expire(job), may: over, must: over };
  }

  fund({ who, coordinator, name, amount, term }) {
    const person = this.people[who];
    const send = this.into(this.w.rewards, person, amount, this.terms(name, this.people[coordinator], term));
    const may = amount > 0n && term > 0 && term <= 366 * 86_400;
    return { send, may, after: () => this.pools.add(key(person, `n${name}`)) };
  }

  // Everybody's earnings so far and `more` for one; a lie promises more than is allotted.
  distribute({ who, right, pick, to, amount, lie }, { pools }) {
    const [pool, { coordinator, sponsor, left }] = this.choose(pools, pick, (one) => one.left > 0n);
    const person = this.by(right, coordinator, who);
    const more = pick % 2 ? min(amount, left) : amount;
    const rounds = this.published(person.address);
    const totals = new Map(rounds.at(-1)?.totals ?? []);
    const target = this.people[to].address;
    totals.set(target, (totals.get(target) ?? 0n) + more + lie);
    if (totals.get(target) >= 2n ** 256n) return null;
    const upTo = (rounds.at(-1)?.upTo ?? 0n) + more;
    const { root } = earnings([...totals]);
    const send = () => this.w.rewards.connect(person).distribute(pool, more, root, ethers.ZeroHash);
    const round = { pool, amount: more, totals, upTo, validFrom: this.now + VETO };
    const after = () => this.rounds.set(person.address, [...rounds, round]);
    return { send, may: person.address === coordinator && more <= left, moves: [[sponsor, -more]], after };
  }

  someRound(number, back) {
    const all = [...this.rounds].filter(([, rounds]) => rounds.length);
    const [coordinator, rounds] = all[number % (all.length || 1)] ?? [this.w.operator.address, []];
    return { coordinator, rounds, round: Math.max(0, rounds.length - 1 - back) };
  }

  claim({ coordinator: number, pick, back, lie }) {
    const { coordinator, rounds } = this.someRound(number, 0);
    const valid = rounds.filter((one) => this.now >= one.validFrom);
    const round = Math.max(0, (pick % 10 ? valid : rounds).length - 1 - back);
    const totals = new Map(rounds[round]?.totals ?? []);
    if (!totals.size) return null;
    const mine = this.claimed.get(coordinator) ?? new Map();
    const [account, total] = this.choose(totals, pick, (one) => one > 0n);
    const index = [...totals.keys()].indexOf(account);
    const due = total - (mine.get(account) ?? 0n);
    const may = lie === 0n && round < valid.length && due > 0n && this.paid(coordinator) + due <= valid.at(-1).upTo;
    const send = () => this.w.rewards.claim(coordinator, round, account, total + lie, earnings([...totals]).proof(index));
    const after = () => this.claimed.set(coordinator, new Map(mine).set(account, total));
    return { send, may, must: may, moves: [[account, due]], after };
  }

  // The guardian is never shut out before the window is over.
  veto({ who, right, coordinator: number, back }) {
    const { coordinator, rounds, round } = this.someRound(number, back);
    const person = this.by(right, this.w.guardian.address, who);
    const gone = rounds.slice(round);
    const may = person === this.w.guardian && gone.length > 0 && this.now < gone[0].validFrom;
    const moves = new Map();
    for (const { pool, amount } of gone) {
      const { sponsor } = this.state.pools.get(pool);
      moves.set(sponsor, (moves.get(sponsor) ?? 0n) + amount);
    }
    const after = () => this.rounds.set(coordinator, rounds.slice(0, round));
    return { send: () => this.w.rewards.connect(person).veto(coordinator, round), may, must: may, moves: [...moves], after };
  }

  refundPool({ who, right, pick }, { pools }) {
    const [pool, { coordinator, deadline, over, sponsor }] = this.choose(pools, pick, (one) => !one.over);
    const person = this.by(right, coordinator, who);
    const may = sponsor !== undefined && !over && (person.address === coordinator || BigInt(this.now) > deadline);
    return { send: () => this.w.rewards.connect(person).refund(pool), may, must: may };
  }

  vouch({ who, signer }) {
    const [staker, other] = [this.people[who], this.people[signer]];
    const after = () => this.vouched.add(`${staker.address}/${other.address}`);
    return { send: () => this.w.tracker.connect(staker).vouch(other), after };
  }

  // Every fault that can be proved costs the penalty, or all the stake that there is, whatever that is bound to.
  async prove({ signer, staker, right, nonce }, { people }) {
    const node = this.people[signer];
    const answers = this.people.filter((one) => this.vouched.has(`${one.address}/${node.address}`));
    const stake = right ? [node, ...answers][staker % (1 + answers.length)] : this.people[staker];
    const fault = `${node.address}/${nonce}/${stake.address}`;
    const before = this.taken.get(fault);
    const amount = min(PENALTY - (before ?? 0n), at(people.get(stake.address)));
    const answerable = stake === node || answers.includes(stake);
    const may = answerable && (amount > 0n || before === undefined);
    const given = await equivocation(this.w, node, { nonces: [BigInt(nonce), BigInt(nonce)] });
    const after = () => this.taken.set(fault, (before ?? 0n) + amount);
    const moves = [[stake.address, -amount]];
    return { send: () => this.w.tracker.proveEquivocation(...given, stake), may, must: may, moves, after };
  }

  pass({ seconds }) {
    return { send: () => time.increaseTo(this.now + seconds) };
  }

  // -- the end ---------------------------------------------------------------------------------------------------

  // From wherever a run has ended, everybody gets everything out, whatever is paused.
  async leave() {
    const { w } = this;
    await time.increase(500 * 86_400);
    for (const [job, found] of this.state.jobs) if (live(found)) await w.escrow.expire(job);
    for (const [pool, found] of this.state.pools) if (!found.over) await w.rewards.refund(pool);
    for (const [coordinator, rounds] of this.rounds) {
      const totals = [...(rounds.at(-1)?.totals ?? [])];
      for (const [index, [account, total]] of totals.entries()) {
        const due = total - (this.claimed.get(coordinator)?.get(account) ?? 0n);
        if (due <= 0n || this.paid(coordinator) + due > rounds.at(-1).upTo) continue;
        await w.rewards.claim(coordinator, rounds.length - 1, account, total, earnings(totals).proof(index));
        this.claimed.set(coordinator, new Map(this.claimed.get(coordinator) ?? []).set(account, total));
      }
    }
    for (const person of this.people) {
      const { staked } = await w.staking.positions(person);
      if (staked > 0n) await w.staking.connect(person).unstake(staked);
    }
    await time.increase(8 * 86_400);
    for (const person of this.people) {
      const { unbonding } = await w.staking.positions(person);
      if (unbonding > 0n) await w.staking.connect(person).withdraw();
    }
    this.state = await this.look();
    this.check();
    const { inStaking, inEscrow, inRewards, owed } = this.state.sums;
    expect([inStaking, inEscrow, inRewards - owed]).to.deep.equal(this.stray);
  }
}

async function crowd() {
  const w = await world({ veto: VETO, penalty: PENALTY });
  w.lens = await ethers.deployContract("Lens", [w.token, w.staking, w.escrow, w.rewards].map((one) => one.target));
  for (const one of [w.eve, w.frank]) await w.token.connect(one).burn(1_000n); // no part in this
  for (const one of [w.operator, w.arbiter, w.guardian, w.deployer]) await w.token.connect(w.operator).mint(one, 200n);
  for (const one of [w.alice, w.bob, w.carol, w.dave, w.arbiter]) await stake(w, one, 100n);
  await mine();
  return w;
}

describe("Fuzz", function () {
  this.timeout(24 * 3_600_000);
  const reached = {};
  let calls = 0;

  it(`tokens move as the rules say, and no other way (seed ${SEED}, ${RUNS} runs)`, async () => {
    const one = fc.asyncProperty(fc.array(call, { minLength: 1, maxLength: STEPS, size: "max" }), async (given) => {
      const run = new Run(await loadFixture(crowd));
      await run.start();
      for (const each of given) await run.step(each, reached);
      calls += given.length;
      await run.leave();
    });
    await fc.assert(one, { seed: SEED, numRuns: RUNS, noBias: true });
    console.log(`      ${calls} calls, of which ${of(Object.values(reached).map(BigInt))} went through`);
  });

  it("reaches everything: each call has gone through, but those that nobody may (canary)", () => {
    const tame = Object.keys(CALLS).filter((name) => !reached[name]);
    expect(tame, JSON.stringify(reached)).to.deep.equal(["grant"]);
  });
});
