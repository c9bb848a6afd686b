package daemon

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// tagTime is the time in a hook's tag, in UTC, in the form of store.DefaultTag.
const tagTime = "20060102T150405Z"

// maxEvent bounds the name of an event in bytes: a tag has at most 64.
const maxEvent = 64 - 1 - len(tagTime)

// hookTag returns the name of a tag made at an event of QEMU, such as
// "guest-panicked-20261122T180432Z".
func hookTag(event string, at time.Time) string {
	return tagPrefix(event) + "-" + at.UTC().Format(tagTime)
}

func tagPrefix(event string) string {
	return strings.ToLower(strings.ReplaceAll(event, "_", "-"))
}

var hookTagForm = regexp.MustCompile(`^([a-z][a-z-]*)-[0-9]{8}T[0-9]{6}Z$`)

// isHookTag reports whether hookTag made the name, in this or an earlier process: an event of QEMU
// or one of more, and a time.
func isHookTag(tag string, more []string) bool {
	m := hookTagForm.FindStringSubmatch(tag)
	is := func(event string) bool { return tagPrefix(event) == m[1] }
	return m != nil && (slices.ContainsFunc(qemuEvents, is) || slices.ContainsFunc(more, is))
}

var eventForm = regexp.MustCompile(`^[A-Z][A-Z_]*$`)

// HookEvent returns the name of an event as QEMU writes it; case does not matter, nor - or _.
// Unknown names are accepted: later QEMUs may have them.
func HookEvent(name string) (string, error) {
	event := strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
	if !eventForm.MatchString(event) || len(event) > maxEvent {
		return "", fmt.Errorf("%q is no name of an event of QEMU; expected one such as SHUTDOWN, "+
			"RESET, GUEST_PANICKED, STOP", name)
	}
	return event, nil
}

// HookEvents applies HookEvent to several names and drops duplicates.
func HookEvents(names []string) ([]string, error) {
	var events []string
	for _, name := range names {
		event, err := HookEvent(name)
		if err != nil {
			return nil, err
		}
		if known := misspelled(event); known != "" {
			return nil, fmt.Errorf("%q is no event of the versions of QEMU known here: "+
				"did you mean %s?", name, known)
		}
		if !slices.Contains(events, event) {
			events = append(events, event)
		}
	}
	return events, nil
}

// misspelled is the event of QEMU that one mistake makes event of: a letter too much, one too few,
// another one, or two exchanged. Empty: event is one itself, or like none.
func misspelled(event string) string {
	if knownEvent(event) {
		return ""
	}
	for _, known := range qemuEvents {
		if oneMistake(event, known) {
			return known
		}
	}
	return ""
}

func oneMistake(a, b string) bool {
	if len(a) > len(b) {
		a, b = b, a
	}
	i := 0
	for i < len(a) && a[i] == b[i] {
		i++
	}
	switch len(b) - len(a) {
	case 0:
		if i == len(a) {
			return false
		}
		exchanged := i+1 < len(a) && a[i] == b[i+1] && a[i+1] == b[i] && a[i+2:] == b[i+2:]
		return exchanged || a[i+1:] == b[i+1:]
	case 1:
		return a[i:] == b[i+1:]
	}
	return false
}

func knownEvent(event string) bool {
	_, found := slices.BinarySearch(qemuEvents, event)
	return found
}

// qemuEvents are the events of QEMU 7.2 to 10.0, from query-qmp-schema, sorted.
var qemuEvents = []string{
	"ACPI_DEVICE_OST", "BALLOON_CHANGE", "BLOCK_EXPORT_DELETED", "BLOCK_IMAGE_CORRUPTED",
	"BLOCK_IO_ERROR",
	"BLOCK_JOB_CANCELLED", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_ERROR", "BLOCK_JOB_PENDING",
	"BLOCK_JOB_READY",
	"BLOCK_WRITE_THRESHOLD", "COLO_EXIT", "DEVICE_DELETED", "DEVICE_TRAY_MOVED",
	"DEVICE_UNPLUG_GUEST_ERROR",
	"DUMP_COMPLETED", "FAILOVER_NEGOTIATED", "GUEST_CRASHLOADED", "GUEST_PANICKED",
	"GUEST_PVSHUTDOWN",
	"HV_BALLOON_STATUS_REPORT", "JOB_STATUS_CHANGE", "MEMORY_DEVICE_SIZE_CHANGE", "MEMORY_FAILURE",
	"MEM_UNPLUG_ERROR", "MIGRATION", "MIGRATION_PASS", "NETDEV_STREAM_CONNECTED",
	"NETDEV_STREAM_DISCONNECTED",
	"NETDEV_VHOST_USER_CONNECTED", "NETDEV_VHOST_USER_DISCONNECTED", "NIC_RX_FILTER_CHANGED",
	"POWERDOWN",
	"PR_MANAGER_STATUS_CHANGED", "QUORUM_FAILURE", "QUORUM_REPORT_BAD", "RDMA_GID_STATUS_CHANGED",
	"RESET",
	"RESUME", "RTC_CHANGE", "SHUTDOWN", "SPICE_CONNECTED", "SPICE_DISCONNECTED",
	"SPICE_INITIALIZED",
	"SPICE_MIGRATE_COMPLETED", "STOP", "SUSPEND", "SUSPEND_DISK", "UNPLUG_PRIMARY",
	"VFIO_MIGRATION",
	"VFU_CLIENT_HANGUP", "VNC_CONNECTED", "VNC_DISCONNECTED", "VNC_INITIALIZED", "VSERPORT_CHANGE",
	"WAKEUP",
	"WATCHDOG",
}
