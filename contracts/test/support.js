const { ethers } = require("hardhat");
const { time } = require("@nomicfoundation/hardhat-network-helpers");
const { deploySystem } = require("../scripts/system");

const id = (text) => ethers.encodeBytes32String(text);
const coder = ethers.AbiCoder.defaultAbiCoder();

// Everything deployed, and six people with 1,000 tokens each.
async function world(rules = {}) {
  const signers = await ethers.getSigners();
  const [deployer, operator, arbiter, guardian, alice, bob, carol, dave, eve, frank] = signers;
  const system = await deploySystem(ethers, { operator, arbiter, guardian, cap: 10_000n, ...rules });
  const people = [alice, bob, carol, dave, eve, frank];
  for (const person of people) await system.token.connect(operator).mint(person, 1_000n);
  return { ...system, deployer, operator, arbiter, guardian, alice, bob, carol, dave, eve, frank, people };
}

const later = async (seconds) => (await time.latest()) + seconds;

const stake = (w, who, amount) =>
  w.token.connect(who)["transferAndCall(address,uint256,bytes)"](w.staking.target, amount, "0x");

const terms = (name, who, deadline) => coder.encode(["bytes32", "address", "uint64"], [id(name), who.address, deadline]);

const open = async (w, name, payer, amount, settler = w.operator, seconds = 3600) =>
  w.token.connect(payer)["transferAndCall(address,uint256,bytes)"](
    w.escrow.target, amount, terms(name, settler, await later(seconds)));

const fund = async (w, name, sponsor, amount, coordinator = w.operator, seconds = 3600) =>
  w.token.connect(sponsor)["transferAndCall(address,uint256,bytes)"](
    w.rewards.target, amount, terms(name, coordinator, await later(seconds)));

// -- Merkle trees over SHA-256, as tutti.core.merkle builds them
const leaf = (record) => ethers.sha256(ethers.sha256(record));
const pair = (a, b) => ethers.sha256(ethers.concat(a < b ? [a, b] : [b, a]));

function levels(leaves) {
  const found = [leaves];
  while (found.at(-1).length > 1) {
    const level = found.at(-1);
    const next = [];
    for (let i = 0; i < level.length; i += 2) next.push(i + 1 < level.length ? pair(level[i], level[i + 1]) : level[i]);
    found.push(next);
  }
  return found;
}

const root = (leaves) => levels(leaves).at(-1)[0];

function proof(leaves, index) {
  const found = [];
  for (const level of levels(leaves).slice(0, -1)) {
    if ((index ^ 1) < level.length) found.push(level[index ^ 1]);
    index >>= 1;
  }
  return found;
}

// Cumulative earnings as a tree: [[account, total], ...].
function earnings(totals) {
  const leaves = totals.map(([who, total]) => leaf(coder.encode(["address", "uint256"], [who.address ?? who, total])));
  return { root: leaves.length ? root(leaves) : ethers.ZeroHash, proof: (index) => proof(leaves, index) };
}

// A small generator with a seed, so that a failing run can be repeated (mulberry32).
function chance(seed) {
  const next = () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  const below = (n) => Math.floor(next() * n);
  return { next, below, pick: (list) => list[below(list.length)] };
}

module.exports = { chance, coder, earnings, fund, id, later, leaf, open, proof, root, stake, world };
