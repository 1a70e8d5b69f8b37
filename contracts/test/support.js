const { ethers } = require("hardhat");
const { time } = require("@nomicfoundation/hardhat-network-helpers");
const { deploySystem } = require("../scripts/system");

const id = (text) => ethers.encodeBytes32String(text);
const coder = ethers.AbiCoder.defaultAbiCoder();

// Under which key a payer's escrow or pool of this name lies.
const key = (payer, name) => ethers.keccak256(coder.encode(["address", "bytes32"], [payer.address ?? payer, id(name)]));

// Everything deployed, and six people with 1,000 tokens each.
async function world(rules = {}) {
  const signers = await ethers.getSigners();
  const [deployer, operator, arbiter, guardian, alice, bob, carol, dave, eve, frank] = signers;
  const system = await deploySystem(ethers, { operator, arbiter, guardian, cap: 10_000n, veto: 0, ...rules });
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

// Two updates that `who` has signed for this tracker, as arguments of proveEquivocation. They differ unless told to agree.
async function equivocation(w, who, { hashes = ["a", "b"], nonces = [0n, 0n], signers = [who, who] } = {}) {
  const { chainId } = await ethers.provider.getNetwork();
  const domain = { name: "Tutti", version: "1", chainId, verifyingContract: w.tracker.target };
  const fields = ["session:bytes32", "round:uint64", "baseModel:bytes32", "updateHash:bytes32", "samples:uint64", "nonce:uint64"];
  const types = { Update: fields.map((f) => ({ name: f.split(":")[0], type: f.split(":")[1] })) };
  const given = [];
  for (const [i, hash] of hashes.entries()) {
    const update = { session: id("s"), round: 1n, baseModel: id("b"), updateHash: id(hash), samples: 9n, nonce: nonces[i] };
    given.push(update, await signers[i].signTypedData(domain, types, update));
  }
  return given;
}

module.exports = { coder, earnings, equivocation, fund, id, key, later, leaf, open, proof, root, stake, world };
