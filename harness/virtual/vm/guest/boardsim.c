// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * What the virtual board lacks of a real one: a battery, a thermal zone with a passive trip, and
 * cpufreq. The kernel's own cpufreq and thermal governors decide; this module only has physics.
 *
 * Heat and charge follow from how busy the guest's CPUs were and from the clock that cpufreq set.
 * The clock is real for what runs: while it is below the highest, a pinned timer lets a task run
 * for a slice and then keeps the CPU for slice * (top / clock - 1), so that everything on the CPU
 * is slower by top / clock. An idle CPU is left alone. slice_us: short slices are fair to short
 * work, but QEMU's own timers are only good for short ones where it counts instructions.
 * interrupt_ns: what one interrupt costs by itself, of which the task has nothing either.
 *
 * Parameters are in /sys/module/boardsim/parameters and may be changed by root at any time.
 */
#include <linux/cpu_cooling.h>
#include <linux/cpufreq.h>
#include <linux/hrtimer.h>
#include <linux/math64.h>
#include <linux/minmax.h>
#include <linux/module.h>
#include <linux/percpu.h>
#include <linux/power_supply.h>
#include <linux/sched.h>
#include <linux/spinlock.h>
#include <linux/thermal.h>
#include <linux/workqueue.h>

#define TOP_KHZ 1500000
#define TICK_MS 100

static int ambient_mc = 25000;
static int trip_mc = 70000;
static int idle_mw = 1000;
static int core_mw = 4000;
static int resistance_mk_per_w = 15000;
static int capacity_mj_per_k = 500;
static int battery_mj = 100 * 3600 * 1000;
static int charge_pct = 80;
static int mains;
static int slice_us = 1000;
static int interrupt_ns;
module_param(ambient_mc, int, 0644);
module_param(trip_mc, int, 0444);
module_param(idle_mw, int, 0644);
module_param(core_mw, int, 0644);
module_param(resistance_mk_per_w, int, 0644);
module_param(capacity_mj_per_k, int, 0644);
module_param(battery_mj, int, 0444);
module_param(mains, int, 0644);
module_param(slice_us, int, 0444);
module_param(interrupt_ns, int, 0444);

/* Written by one work item, read by anyone. */
static s64 temp_uc;
static s64 energy_uj;
static u64 power_uw;
static unsigned int clock_khz = TOP_KHZ;

/* ---- what the clock was, and since when: the truth that a verdict can be held against ---- */

#define LOGGED 128

static struct {
	s64 since_ns;
	unsigned int khz;
} clock_log[LOGGED];
static unsigned int clock_changes;
static DEFINE_SPINLOCK(clock_log_lock);

static void clock_note(unsigned int khz)
{
	unsigned long flags;

	spin_lock_irqsave(&clock_log_lock, flags);
	clock_log[clock_changes % LOGGED].since_ns = ktime_get_ns();
	clock_log[clock_changes % LOGGED].khz = khz;
	clock_changes++;
	spin_unlock_irqrestore(&clock_log_lock, flags);
}

/* The latest changes, the oldest first: nanoseconds of CLOCK_MONOTONIC and kHz. */
static int clock_log_get(char *buffer, const struct kernel_param *kp)
{
	unsigned int change;
	unsigned long flags;
	int length = 0;

	spin_lock_irqsave(&clock_log_lock, flags);
	change = clock_changes > LOGGED ? clock_changes - LOGGED : 0;
	for (; change < clock_changes; change++)
		length += sysfs_emit_at(buffer, length, "%lld %u\n",
					clock_log[change % LOGGED].since_ns,
					clock_log[change % LOGGED].khz);
	spin_unlock_irqrestore(&clock_log_lock, flags);
	return length;
}

static const struct kernel_param_ops clock_log_ops = { .get = clock_log_get };
module_param_cb(clock_log, &clock_log_ops, NULL, 0444);

static struct power_supply *battery;

/* Setting charge_pct charges or discharges the battery at once; reading it asks the battery. */
static int charge_set(const char *text, const struct kernel_param *kp)
{
	int error = param_set_int(text, kp);

	if (error)
		return error;
	charge_pct = clamp(charge_pct, 0, 100);
	WRITE_ONCE(energy_uj, div_s64((s64)battery_mj * 1000 * charge_pct, 100));
	if (battery)
		power_supply_changed(battery);
	return 0;
}

static int battery_pct(void)
{
	return (int)div64_s64(READ_ONCE(energy_uj) * 100, (s64)battery_mj * 1000);
}

static int charge_get(char *buffer, const struct kernel_param *kp)
{
	return sysfs_emit(buffer, "%d\n", battery_pct());
}

static const struct kernel_param_ops charge_ops = { .set = charge_set, .get = charge_get };
module_param_cb(charge_pct, &charge_ops, &charge_pct, 0644);

/* ---- battery ---- */

static enum power_supply_property battery_properties[] = {
	POWER_SUPPLY_PROP_STATUS,      POWER_SUPPLY_PROP_PRESENT,     POWER_SUPPLY_PROP_SCOPE,
	POWER_SUPPLY_PROP_CAPACITY,    POWER_SUPPLY_PROP_VOLTAGE_NOW, POWER_SUPPLY_PROP_CURRENT_NOW,
};

static int battery_get(struct power_supply *supply, enum power_supply_property property,
		       union power_supply_propval *value)
{
	int pct = battery_pct();

	switch (property) {
	case POWER_SUPPLY_PROP_STATUS:
		value->intval = mains ? POWER_SUPPLY_STATUS_CHARGING :
					POWER_SUPPLY_STATUS_DISCHARGING;
		return 0;
	case POWER_SUPPLY_PROP_PRESENT:
		value->intval = 1;
		return 0;
	case POWER_SUPPLY_PROP_SCOPE:
		value->intval = POWER_SUPPLY_SCOPE_SYSTEM;
		return 0;
	case POWER_SUPPLY_PROP_CAPACITY:
		value->intval = pct;
		return 0;
	case POWER_SUPPLY_PROP_VOLTAGE_NOW: /* 3.4 V when empty, 4.2 V when full */
		value->intval = 3400000 + 8000 * pct;
		return 0;
	case POWER_SUPPLY_PROP_CURRENT_NOW:
		value->intval = (int)div64_u64(READ_ONCE(power_uw) * 1000000, 3400000 + 8000 * pct);
		return 0;
	default:
		return -EINVAL;
	}
}

static const struct power_supply_desc battery_desc = {
	.name = "BAT0",
	.type = POWER_SUPPLY_TYPE_BATTERY,
	.properties = battery_properties,
	.num_properties = ARRAY_SIZE(battery_properties),
	.get_property = battery_get,
};

/* ---- the clock: tasks are slowed by a timer that keeps the CPU ---- */

struct core {
	struct hrtimer timer;
	u64 since_ns;
	bool armed;
};
static DEFINE_PER_CPU(struct core, cores);

static enum hrtimer_restart keep_cpu(struct hrtimer *timer)
{
	struct core *core = container_of(timer, struct core, timer);
	unsigned int khz = READ_ONCE(clock_khz);
	u64 now_ns = ktime_get_ns();

	if (khz >= TOP_KHZ) {
		core->armed = false;
		return HRTIMER_NORESTART;
	}
	if (!is_idle_task(current)) {
		/*
		 * By what ran, not by the slice: a timer that is a little late keeps the ratio.
		 * One that is much later means that QEMU itself was not running, and to pay for
		 * that as well would leave tasks nothing on a busy host.
		 */
		u64 ran_ns = min_t(u64, now_ns - core->since_ns, 2 * slice_us * NSEC_PER_USEC);
		u64 task_ns = ran_ns - min_t(u64, ran_ns, interrupt_ns);
		u64 whole_ns = div_u64(task_ns * TOP_KHZ, khz);
		u64 end_ns = now_ns + whole_ns - min(whole_ns, ran_ns);

		while (ktime_get_ns() < end_ns)
			cpu_relax();
	}
	core->since_ns = ktime_get_ns();
	hrtimer_set_expires(timer, ns_to_ktime(core->since_ns + slice_us * NSEC_PER_USEC));
	return HRTIMER_RESTART;
}

static void arm_core(void *unused)
{
	struct core *core = this_cpu_ptr(&cores);

	if (core->armed)
		return;
	core->armed = true;
	core->since_ns = ktime_get_ns();
	hrtimer_start(&core->timer, ns_to_ktime(slice_us * NSEC_PER_USEC),
		      HRTIMER_MODE_REL_PINNED_HARD);
}

static struct cpufreq_frequency_table clocks[] = {
	{ .frequency = 600000 },  { .frequency = 750000 },  { .frequency = 1000000 },
	{ .frequency = 1200000 }, { .frequency = TOP_KHZ }, { .frequency = CPUFREQ_TABLE_END },
};

static int clock_init(struct cpufreq_policy *policy)
{
	/* One clock for all cores, as on the small boards. */
	cpumask_copy(policy->cpus, cpu_possible_mask);
	policy->freq_table = clocks;
	policy->cpuinfo.transition_latency = 300000;
	policy->cur = clock_khz;
	return 0;
}

static int clock_set(struct cpufreq_policy *policy, unsigned int index)
{
	WRITE_ONCE(clock_khz, clocks[index].frequency);
	clock_note(clocks[index].frequency);
	if (clocks[index].frequency < TOP_KHZ)
		on_each_cpu(arm_core, NULL, true);
	return 0;
}

static unsigned int clock_get(unsigned int cpu)
{
	return READ_ONCE(clock_khz);
}

static struct cpufreq_driver clock_driver = {
	.name = "boardsim",
	.init = clock_init,
	.verify = cpufreq_generic_frequency_table_verify,
	.target_index = clock_set,
	.get = clock_get,
	.attr = cpufreq_generic_attr,
};

/* ---- heat ---- */

static struct thermal_zone_device *zone;
static struct thermal_cooling_device *cooling;

static int zone_temp(struct thermal_zone_device *device, int *temp_mc)
{
	*temp_mc = (int)div_s64(READ_ONCE(temp_uc), 1000);
	return 0;
}

static int zone_trip_type(struct thermal_zone_device *device, int trip,
			  enum thermal_trip_type *type)
{
	*type = THERMAL_TRIP_PASSIVE;
	return 0;
}

static int zone_trip_temp(struct thermal_zone_device *device, int trip, int *temp_mc)
{
	*temp_mc = trip_mc;
	return 0;
}

static int zone_bind(struct thermal_zone_device *device, struct thermal_cooling_device *candidate)
{
	if (candidate != cooling)
		return 0;
	return thermal_zone_bind_cooling_device(device, 0, candidate, THERMAL_NO_LIMIT,
						THERMAL_NO_LIMIT, THERMAL_WEIGHT_DEFAULT);
}

static struct thermal_zone_device_ops zone_ops = {
	.get_temp = zone_temp,
	.get_trip_type = zone_trip_type,
	.get_trip_temp = zone_trip_temp,
	.bind = zone_bind,
};

/* ---- physics: one step every TICK_MS ---- */

static u64 last_idle_us, last_wall_us;
static ktime_t last_step;

/* Busy cores since the last step, in thousandths of one core. */
static u64 busy_permille(void)
{
	u64 idle_us = 0, wall_us = 0, busy_us, spent_us;
	unsigned int cpu;

	for_each_online_cpu(cpu) {
		u64 wall;

		idle_us += get_cpu_idle_time(cpu, &wall, 1);
		wall_us += wall;
	}
	spent_us = wall_us - last_wall_us;
	busy_us = spent_us - min(idle_us - last_idle_us, spent_us);
	last_idle_us = idle_us;
	last_wall_us = wall_us;
	return spent_us ? div64_u64(busy_us * 1000 * num_online_cpus(), spent_us) : 0;
}

static void step(struct work_struct *work)
{
	ktime_t now = ktime_get();
	s64 elapsed_us = min_t(s64, ktime_us_delta(now, last_step), 10 * TICK_MS * 1000);
	u64 clock_permille = div_u64((u64)READ_ONCE(clock_khz) * 1000, TOP_KHZ);
	u64 core_uw = div_u64((u64)core_mw * busy_permille() * clock_permille, 1000);
	s64 lost_uw, gained_uj;

	last_step = now;
	/* A core's power falls with the clock squared: the voltage falls with it. */
	WRITE_ONCE(power_uw, (u64)idle_mw * 1000 + div_u64(core_uw * clock_permille, 1000));
	lost_uw = div_s64((temp_uc - (s64)ambient_mc * 1000) * 1000, resistance_mk_per_w);
	gained_uj = div_s64(((s64)power_uw - lost_uw) * elapsed_us, 1000000);
	WRITE_ONCE(temp_uc, temp_uc + div_s64(gained_uj * 1000, capacity_mj_per_k));
	if (!mains)
		WRITE_ONCE(energy_uj, max_t(s64, 0, energy_uj - div_s64((s64)power_uw * elapsed_us,
									  1000000)));
	schedule_delayed_work(to_delayed_work(work), msecs_to_jiffies(TICK_MS));
}
static DECLARE_DELAYED_WORK(stepping, step);

static int zone_create(void)
{
	struct cpufreq_policy *policy = cpufreq_cpu_get(0);

	if (!policy)
		return -ENODEV;
	cooling = cpufreq_cooling_register(policy);
	cpufreq_cpu_put(policy);
	if (IS_ERR(cooling))
		return PTR_ERR(cooling);
	zone = thermal_zone_device_register("cpu-thermal", 1, 0, NULL, &zone_ops, NULL, 250, 1000);
	if (IS_ERR(zone)) {
		cpufreq_cooling_unregister(cooling);
		return PTR_ERR(zone);
	}
	return thermal_zone_device_enable(zone);
}

static int __init boardsim_init(void)
{
	unsigned int cpu;
	int error;

	/* At rest, as if idle for long. */
	temp_uc = (s64)ambient_mc * 1000 + (s64)idle_mw * resistance_mk_per_w / 1000;
	power_uw = (u64)idle_mw * 1000;
	energy_uj = div_s64((s64)battery_mj * 1000 * charge_pct, 100);
	last_step = ktime_get();
	for_each_possible_cpu(cpu) {
		struct core *core = per_cpu_ptr(&cores, cpu);

		hrtimer_init(&core->timer, CLOCK_MONOTONIC, HRTIMER_MODE_REL_PINNED_HARD);
		core->timer.function = keep_cpu;
	}
	battery = power_supply_register(NULL, &battery_desc, NULL);
	if (IS_ERR(battery))
		return PTR_ERR(battery);
	error = cpufreq_register_driver(&clock_driver);
	if (error)
		goto no_clock;
	error = zone_create();
	if (error)
		goto no_zone;
	busy_permille();
	schedule_delayed_work(&stepping, msecs_to_jiffies(TICK_MS));
	return 0;
no_zone:
	cpufreq_unregister_driver(&clock_driver);
no_clock:
	power_supply_unregister(battery);
	return error;
}

/* No exit: the board is powered off instead. */
module_init(boardsim_init);
MODULE_DESCRIPTION("Battery, thermal zone and cpufreq of fleetcut's virtual arm64 board");
MODULE_LICENSE("GPL");
