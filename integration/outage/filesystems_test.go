//go:build integration

package outage

import (
	"os"
	"testing"
)

// filesystem is one kind of file system that the tests are run on.
type filesystem struct {
	name    string
	mkfs    []string // the device is appended
	kind    string   // of mount(2)
	options string   // of mount(2)
	// reflink: the store's files share their blocks with copies of them, again and again.
	reflink bool
	// ranges: FIEMAP tells where on the device a file is.
	ranges bool
	// shutdown: the file system has the ioctl that shuts it down.
	shutdown bool
	// cow: a page that is written back needs new space.
	cow bool
	// long: only the long form tries this one, but for power cuts.
	long bool
}

// deviceSize in bytes: XFS wants 300 MiB.
const deviceSize = 384 << 20

var (
	mkfsXFS   = []string{"mkfs.xfs", "-q", "-K", "-m", "reflink=1"}
	mkfsBtrfs = []string{"mkfs.btrfs", "-q", "-K"}
)

var filesystems = []filesystem{
	{name: "ext4", mkfs: []string{"mkfs.ext4", "-q", "-F", "-E", "nodiscard"}, kind: "ext4", ranges: true, shutdown: true},
	{name: "xfs", mkfs: mkfsXFS, kind: "xfs", ranges: true, shutdown: true, long: true},
	{name: "xfs-reflinked", mkfs: mkfsXFS, kind: "xfs", reflink: true, ranges: true, shutdown: true, cow: true},
	{name: "btrfs", mkfs: mkfsBtrfs, kind: "btrfs", options: "nodiscard", cow: true},
	{name: "btrfs-nodatacow", mkfs: mkfsBtrfs, kind: "btrfs", options: "nodiscard,nodatacow", long: true},
}

// onEach runs a test on a new machine of each file system; in the short form, of three.
func onEach(t *testing.T, test func(*machine)) {
	t.Helper()
	run(t, long(), test)
}

// long tells whether this is the long form.
func long() bool { return os.Getenv(cutsEnv) != "" }

// onAll is onEach of every file system in the short form, too.
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
