// What the owner of this device allows, which no coordinator can override.

export type Rules = { paused: boolean; onlyCharging: boolean; onlyWifi: boolean };
export const RULES: Rules = { paused: false, onlyCharging: false, onlyWifi: false };

type Battery = EventTarget & { charging: boolean; level: number };
type Connection = EventTarget & { type?: string; effectiveType?: string };
type Device = Navigator & { getBattery?: () => Promise<Battery>; connection?: Connection; deviceMemory?: number; gpu?: unknown };

const device = navigator as Device;

/** The device as it is now: whether rules let it work, and if not, why, in words. */
export class Owner {
  private battery?: Battery;

  private constructor(private readonly rules: () => Rules) {}

  /** `changed` is called until `over`, for battery and connection outlive whoever asks. */
  static async of(rules: () => Rules, changed: () => void, over: AbortSignal): Promise<Owner> {
    const owner = new Owner(rules);
    owner.battery = await device.getBattery?.().catch(() => undefined);
    owner.battery?.addEventListener("chargingchange", changed, { signal: over });
    device.connection?.addEventListener("change", changed, { signal: over });
    return owner;
  }

  /** What this browser can tell, and so which rules can be kept. */
  get knows(): { charging: boolean; wifi: boolean } {
    return { charging: this.battery !== undefined, wifi: device.connection?.type !== undefined };
  }

  get level(): number | undefined {
    return this.battery?.level;
  }

  /** Why the device does not work now; undefined when it may. */
  get objection(): string | undefined {
    const { paused, onlyCharging, onlyWifi } = this.rules();
    if (paused) return "paused by you";
    if (onlyCharging && this.battery && !this.battery.charging) return "waiting until the device is charging";
    if (onlyWifi && device.connection?.type && !["wifi", "ethernet"].includes(device.connection.type)) return "waiting for Wi-Fi";
    return undefined;
  }

  capabilities(arithmetic: string): Record<string, unknown> {
    const memory = (device.deviceMemory ?? 2) * 2 ** 30;
    const network = device.connection?.type ?? device.connection?.effectiveType ?? "unknown";
    return {
      cpus: navigator.hardwareConcurrency || 1,
      memory,
      gpus: device.gpu ? ["WebGPU"] : [],
      platform: `browser ${network} ${navigator.userAgent}`.slice(0, 200),
      versions: { kernel: arithmetic },
      trainers: ["browser"],
    };
  }
}

/** Rows in a batch where the job leaves it to the device, by the memory that it has (domain/policy.py). */
export function batchSizeFor(memory: number): number {
  const gigabytes = memory / 2 ** 30;
  return gigabytes >= 24 ? 64 : gigabytes >= 12 ? 32 : gigabytes >= 6 ? 16 : gigabytes >= 3 ? 8 : 4;
}
