// Deploys the contracts, each role to its own address. With no `admin` the deployer gives up its power at the end:
// then nobody can ever grant a role, and the rules stay as they are.
const PERIOD = 7 * 24 * 3600;

async function deploySystem(ethers, { operator, arbiter, guardian, admin, ...rules } = {}) {
  const [deployer] = await ethers.getSigners();
  const { cap = 2n ** 53n, period = PERIOD, veto = 0, penalty = 1_000n } = rules;
  const make = async (name, ...args) => (await ethers.deployContract(name, args)).waitForDeployment();
  const token = await make("TuttiToken", deployer.address, cap);
  const staking = await make("Staking", token.target, deployer.address, period);
  const escrow = await make("JobEscrow", token.target, staking.target, deployer.address);
  const rewards = await make("RewardDistributor", token.target, deployer.address, veto);
  const registry = await make("TrainingRegistry");
  const tracker = await make("ContributionTracker", registry.target, staking.target, penalty);
  const grants = [
    [token, "MINTER_ROLE", operator],
    [staking, "ARBITER_ROLE", arbiter],
    [staking, "ARBITER_ROLE", tracker.target],
    [staking, "BOND_ROLE", escrow.target],
    [escrow, "ARBITER_ROLE", arbiter],
    [rewards, "GUARDIAN_ROLE", guardian],
    [staking, "PAUSER_ROLE", guardian],
    [escrow, "PAUSER_ROLE", guardian],
    [rewards, "PAUSER_ROLE", guardian],
  ];
  for (const [contract, role, to] of grants) await (await contract.grantRole(await contract[role](), to)).wait();
  for (const contract of [token, staking, escrow, rewards]) {
    const top = await contract.DEFAULT_ADMIN_ROLE();
    if (admin) await (await contract.grantRole(top, admin)).wait();
    if (admin !== deployer.address) await (await contract.renounceRole(top, deployer.address)).wait();
  }
  return { token, staking, escrow, rewards, registry, tracker };
}

const NAMES = {
  token: "TuttiToken",
  staking: "Staking",
  escrow: "JobEscrow",
  rewards: "RewardDistributor",
  registry: "TrainingRegistry",
  tracker: "ContributionTracker",
};

module.exports = { deploySystem, NAMES, PERIOD };
