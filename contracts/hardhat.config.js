require("@nomicfoundation/hardhat-ethers");
require("@nomicfoundation/hardhat-chai-matchers");
const { subtask } = require("hardhat/config");
const { TASK_COMPILE_SOLIDITY_GET_SOLC_BUILD } = require("hardhat/builtin-tasks/task-names");

const version = require("solc/package.json").version;

// The compiler comes from npm with everything else: Hardhat would download one, which fails without internet.
subtask(TASK_COMPILE_SOLIDITY_GET_SOLC_BUILD, async (args, hre, runSuper) => {
  if (args.solcVersion !== version) return runSuper();
  const longVersion = require("solc").version().replace(".Emscripten.clang", "");
  return { version, longVersion, compilerPath: require.resolve("solc/soljson.js"), isSolcJs: true };
});

module.exports = {
  solidity: {
    version,
    settings: { optimizer: { enabled: true, runs: 200 }, evmVersion: "cancun", metadata: { bytecodeHash: "none" } },
  },
  networks: { hardhat: { chainId: 31337 }, localhost: { url: process.env.TUTTI_RPC ?? "http://127.0.0.1:8545" } },
  mocha: { timeout: 120_000 },
};
