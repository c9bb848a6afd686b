//go:build integration

package outage

import (
	"os"
	"testing"
)

// filesystem is one kind of file system that the tests run on.
type filesystem struct {
	name    string
	mkfs    []string // without the device, which is appended
	kind    string   // for mount(2)
	options string   // for mount(2)
	// reflink: the store's files repeatedly share their blocks with copies.
	reflink bool
	// ranges: FIEMAP reports the positions of a file's data on the device.
	ranges bool
	// shutdown: the file system has a shutdown ioctl.
	shutdown bool
	// cow: every page that is written back needs new space.
	cow bool
	// long: tested in the long form only, except for power cuts.
	long bool
}

// deviceSize is the size of the device in bytes: XFS needs 300 MiB.
const deviceSize = 384 << 20

var (
	mkfsXFS   = []string{"mkfs.xfs", "-q", "-K", "-m", "reflink=1"}
	mkfsBtrfs = []string{"mkfs.btrfs", "-q", "-K"}
)

var filesystems = []filesystem{
	{name: "ext4", mkfs: []string{"mkfs.ext4", "-q", "-F", "-E", "nodiscard"}, kind: "ext4",
		ranges: true, shutdown: true},
	{name: "xfs", mkfs: mkfsXFS, kind: "xfs", ranges: true, shutdown: true, long: true},
	{name: "xfs-reflinked", mkfs: mkfsXFS, kind: "xfs", reflink: true, ranges: true, shutdown: true,
		cow: true},
	{name: "btrfs", mkfs: mkfsBtrfs, kind: "btrfs", options: "nodiscard", cow: true},
	{name: "btrfs-nodatacow", mkfs: mkfsBtrfs, kind: "btrfs", options: "nodiscard,nodatacow",
		long: true},
}

// onEach runs a test on a new machine for each file system; in the short form, for three.
func onEach(t *testing.T, test func(*machine)) {
	t.Helper()
	run(t, long(), test)
}

// long reports whether this is the long form.
func long() bool { return os.Getenv(cutsEnv) != "" }

// onAll runs a test for every file system, in the short form, too.
func onAll(t *testing.T, test func(*machine)) {
	t.Helper()
	run(t, true, test)
}

func run(t *testing.T, all bool, test func(*machine)) {
	t.Helper()
	for _, fs := range filesystems {
		if fs.long && !all {
			continue
		}
		t.Run(fs.name, func(t *testing.T) {
			t.Parallel()
			test(newMachine(t, fs))
		})
	}
}
