const { expect } = require("chai");
const { ethers } = require("hardhat");
const { loadFixture, time } = require("@nomicfoundation/hardhat-network-helpers");
const { id, stake, world } = require("./support");
const { PERIOD } = require("../scripts/system");

describe("TuttiToken", () => {
  it("mints up to its cap, which burning does not raise", async () => {
    const w = await loadFixture(world);
    await w.token.connect(w.alice).burn(400n);
    await expect(w.token.connect(w.operator).mint(w.bob, 4_001n)).to.be.revertedWithCustomError(w.token, "OverCap");
    await w.token.connect(w.operator).mint(w.bob, 4_000n);
    expect(await w.token.minted()).to.equal(10_000n);
    expect(await w.token.totalSupply()).to.equal(9_600n);
  });

  it("is minted by nobody else, and has nobody left who could change that", async () => {
    const w = await loadFixture(world);
    for (const who of [w.deployer, w.alice, w.arbiter, w.guardian]) {
      await expect(w.token.connect(who).mint(who, 1n)).to.be.revertedWithCustomError(
        w.token, "AccessControlUnauthorizedAccount");
    }
    for (const contract of [w.token, w.staking, w.escrow, w.rewards]) {
      expect(await contract.hasRole(await contract.DEFAULT_ADMIN_ROLE(), w.deployer)).to.equal(false);
    }
  });
});

describe("Staking", () => {
  it("gives stake back after the period, which a later unstake starts anew", async () => {
    const w = await loadFixture(world);
    await expect(stake(w, w.alice, 100n)).to.emit(w.staking, "Staked").withArgs(w.alice, 100n);
    await w.staking.connect(w.alice).unstake(40n);
    await time.increase(PERIOD - 10);
    await w.staking.connect(w.alice).unstake(10n);
    await time.increase(20);
    const early = w.staking.connect(w.alice).withdraw();
    await expect(early).to.be.revertedWithCustomError(w.staking, "StillUnbonding");
    await time.increase(PERIOD);
    await w.staking.connect(w.alice).withdraw();
    expect(await w.token.balanceOf(w.alice)).to.equal(950n);
    const again = w.staking.connect(w.alice).withdraw();
    await expect(again).to.be.revertedWithCustomError(w.staking, "NothingUnbonds");
  });

  it("refuses restricted calls from everybody else, in a state in which they could succeed", async () => {
    const w = await loadFixture(world);
    await stake(w, w.alice, 100n);
    for (const who of [w.deployer, w.operator, w.arbiter, w.guardian, w.alice, w.bob]) {
      const her = w.staking.connect(who);
      for (const call of [
        () => her.slash(w.alice, 1n, id("x")),
        () => her.lock(w.alice, 1n),
        () => her.unlock(w.alice, 0n),
        () => her.slashBond(w.alice, 0n, w.carol, 0n, id("x")),
      ]) {
        await expect(call()).to.be.revertedWithCustomError(w.staking, "AccessControlUnauthorizedAccount");
      }
    }
  });

  it("does not take tokens that are not its own", async () => {
    const w = await loadFixture(world);
    for (const contract of [w.staking, w.escrow, w.rewards]) {
      const call = contract.connect(w.eve).onTransferReceived(w.eve, w.eve, 1_000n, "0x");
      await expect(call).to.be.revertedWithCustomError(contract, "NotTheToken");
    }
  });

  it("can pause what comes in, never what goes out", async () => {
    const w = await loadFixture(world);
    await stake(w, w.alice, 100n);
    await w.staking.connect(w.alice).unstake(50n);
    await w.staking.connect(w.guardian).pause();
    await expect(stake(w, w.bob, 1n)).to.be.revertedWithCustomError(w.staking, "EnforcedPause");
    await w.staking.connect(w.alice).unstake(50n);
    await time.increase(PERIOD + 1);
    await w.staking.connect(w.alice).withdraw();
    expect(await w.token.balanceOf(w.alice)).to.equal(1_000n);
    await w.staking.connect(w.guardian).unpause();
    await stake(w, w.bob, 1n);
  });
});
