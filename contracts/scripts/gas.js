// Writes docs/gas.md: what each call costs, on a fresh chain. CHECK=1: only says whether the page is true.
const fs = require("fs");
const path = require("path");
const { ethers } = require("hardhat");
const { time } = require("@nomicfoundation/hardhat-network-helpers");
const { coder, earnings, equivocation, id, key, leaf, root, stake, world } = require("../test/support");

const FILE = path.join(__dirname, "..", "..", "docs", "gas.md");

async function measure() {
  const w = await world();
  const rows = [];
  const cost = async (what, sent) => rows.push([what, (await (await sent).wait()).gasUsed]);
  // A fixed date: each zero byte in a deadline makes a call cheaper, so today must not be in it.
  await time.increaseTo(0x111111111);
  const payIn = (to, name, payer, amount) => {
    const terms = coder.encode(["bytes32", "address", "uint64"], [id(name), w.operator.address, 0x112111111n]);
    return w.token.connect(payer)["transferAndCall(address,uint256,bytes)"](to, amount, terms);
  };
  const [operator, arbiter, bob] = [w.operator, w.arbiter, w.bob];

  await cost("`token.transfer`", w.token.connect(w.alice).transfer(bob, 1n));
  await cost("stake", stake(w, bob, 500n));
  await cost("`staking.unstake`", w.staking.connect(bob).unstake(100n));
  await time.increase(8 * 24 * 3600);
  await cost("`staking.withdraw`", w.staking.connect(bob).withdraw());

  const job = key(w.alice, "job");
  await cost("a job: pay in", payIn(w.escrow.target, "job", w.alice, 100n));
  for (const end of ["release", "penalise", "pay"]) {
    await cost("– `offer`", w.escrow.connect(operator).offer(job, bob, 50n));
    await cost("– `accept`", w.escrow.connect(bob).accept(job, 50n));
    if (end === "release") await cost("– `release`", w.escrow.connect(operator).release(job));
    else if (end === "penalise") await cost("– `penalise`", w.escrow.connect(arbiter).penalise(job, 25n));
    else await cost("– `pay`", w.escrow.connect(operator).pay(job, bob));
  }

  await cost("`registry.open`", w.registry.connect(operator).open(id("s"), id("spec"), id("data"), 10));
  for (const nodes of [10, 100, 1000]) {
    const leaves = [...Array(nodes).keys()].map((i) => leaf(ethers.toBeHex(i, 4)));
    await cost(`\`tracker.record\`, a round of ${nodes} nodes`, w.tracker.connect(operator).record(
      id("s"), nodes, root(leaves), nodes, id("m")));
  }
  await cost("`tracker.vouch`", w.tracker.connect(bob).vouch(w.eve));
  const proof = await equivocation(w, w.eve);
  await cost("`tracker.proveEquivocation`", w.tracker.connect(operator).proveEquivocation(...proof, bob));
  await cost("`registry.close`", w.registry.connect(operator).close(id("s"), id("m")));

  await cost("fill a pool", payIn(w.rewards.target, "pool", w.dave, 500n));
  let round = 0n;
  for (const nodes of [10, 100, 1000]) {
    const totals = [[w.frank, round * 5n + 5n]];
    for (let i = 1; i < nodes; i++) totals.push([ethers.zeroPadValue(ethers.toBeHex(i), 20), 0n]);
    const { root: top, proof } = earnings(totals);
    const sent = w.rewards.connect(operator).distribute(key(w.dave, "pool"), 5n, top, id("evidence"));
    await cost(`\`rewards.distribute\`, a round of ${nodes} nodes`, sent);
    await cost("– `claim`", w.rewards.claim(operator, round, w.frank, totals[0][1], proof(0)));
    round += 1n;
  }
  return rows;
}

async function page() {
  const rows = (await measure()).map(([what, gas]) => `| ${what} | ${gas.toLocaleString("en")} |`);
  return [
    "# What the contracts cost",
    "",
    "Gas of each call on a fresh chain (Solidity 0.8.28, optimizer 200, Cancun), as `scripts/gas.js` measures it. First",
    "calls write new storage and cost more than later ones. A round costs one `record` and one `distribute`, however",
    "many nodes took part; a claim costs more with the depth of the tree only.",
    "",
    "| call | gas |",
    "| --- | ---: |",
    ...rows,
    "",
  ].join("\n");
}

async function main() {
  const text = await page();
  if (!process.env.CHECK) fs.writeFileSync(FILE, text);
  else if (fs.readFileSync(FILE, "utf8") !== text) throw new Error("docs/gas.md is not what the contracts cost: npm --prefix contracts run build");
}

main().catch((error) => {
  console.error(error.message ?? error);
  process.exitCode = 1;
});
