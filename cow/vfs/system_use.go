package vfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrSystemUses is wrapped by SystemUseError.
var ErrSystemUses = errors.New("in use by the system")

// SystemUseError says that the kernel uses a block device: a file system on it is mounted, or it is
// swap, or a member of a RAID or of a device-mapper device.
type SystemUseError struct {
	Path   string // of the device
	Device string // of the device that is used, if it is one below Path; else Path
	Use    string // what the system uses it for
}

func (e *SystemUseError) Error() string {
	name := strconv.Quote(e.Path)
	if e.Device != e.Path {
		name += ", on " + strconv.Quote(e.Device) + ","
	}
	return fmt.Sprintf("%s is %v: %s", name, ErrSystemUses, e.Use)
}

// Unwrap makes errors.Is(err, ErrSystemUses) true.
func (e *SystemUseError) Unwrap() error { return ErrSystemUses }

// Another program, and another process with the same question, holds a device for a moment.
const (
	claimTries = 20
	claimPause = 10 * time.Millisecond
)

// CheckSystemUse returns an ErrSystemUses if the kernel uses the block device at path, one below
// it, or a loop device on the file at path. It asks with an exclusive open (O_EXCL without O_CREAT,
// open(2)), which it closes at once, so it does not keep others from the device. nil: not used, or
// this user may not know.
func CheckSystemUse(fsys FS, path string) error {
	st, err := fsys.Stat(path)
	if err != nil || !st.Mode().IsRegular() && (st.Mode()&fs.ModeDevice == 0 ||
		st.Mode()&fs.ModeCharDevice != 0) {
		return nil
	}
	extents, err := Extents(fsys, path, 0, -1)
	if err != nil {
		return nil // the open reports the error
	}
	extents = append(extents, loopsOn(fsys, extents)...)
	for _, e := range extents {
		if !e.Block || e.Path == "" || !claimed(fsys, e) {
			continue
		}
		return &SystemUseError{Path: path, Device: e.Path, Use: systemUse(e.Dev)}
	}
	return nil
}

// loopsOn returns the loop devices on the files and devices in extents. It opens no device: that
// would disturb processes that set one up or free it.
func loopsOn(fsys FS, extents []Extent) (loops []Extent) {
	if _, ok := fsys.(HostFS); !ok {
		return nil
	}
	names, _ := filepath.Glob("/sys/block/loop*/loop/backing_file") // of those that are set up
	for _, name := range names {
		backing, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		st, err := os.Stat(strings.TrimSuffix(string(backing), "\n"))
		if err != nil {
			continue
		}
		sys := st.Sys().(*syscall.Stat_t)
		below := Inode{Dev: sys.Dev, Inode: sys.Ino}
		if st.Mode()&fs.ModeDevice != 0 {
			below = Inode{Dev: sys.Rdev, Block: true}
		}
		path := "/dev/" + filepath.Base(filepath.Dir(filepath.Dir(name)))
		if slices.ContainsFunc(extents, func(e Extent) bool { return e.Inode == below }) {
			loops = append(loops, Extent{Inode: Inode{Dev: nodeDevice(path), Block: true},
				Path: path})
		}
	}
	return loops
}

func claimed(fsys FS, e Extent) bool {
	for range claimTries {
		f, err := fsys.OpenFile(e.Path, os.O_RDONLY|unix.O_EXCL, 0)
		if err == nil {
			f.Close()
		}
		if !errors.Is(err, unix.EBUSY) {
			return false
		}
		time.Sleep(claimPause)
	}
	return true
}

// systemUse says what the kernel uses a block device, its partitions or its whole disk for.
func systemUse(dev uint64) string {
	devs := family(dev)
	if at := mountPoint(devs); at != "" {
		return "mounted at " + strconv.Quote(at)
	}
	if swaps, err := os.ReadFile("/proc/swaps"); err == nil {
		for line := range strings.Lines(string(swaps)) {
			if name, _, ok := strings.Cut(line, " "); ok && devs[nodeDevice(unescapeOctal(name))] {
				return "swap"
			}
		}
	}
	for dev := range devs {
		holders, _ := os.ReadDir(filepath.Join(sysBlock(dev), "holders"))
		if len(holders) > 0 {
			return "part of " + strconv.Quote("/dev/"+holders[0].Name())
		}
	}
	return "mounted elsewhere, swap, or part of a RAID or volume group"
}

func sysBlock(dev uint64) string {
	return fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(dev), unix.Minor(dev))
}

// family returns the device numbers of a device, its partitions and, for a partition, its disk.
func family(dev uint64) map[uint64]bool {
	devs := map[uint64]bool{dev: true}
	dir, err := filepath.EvalSymlinks(sysBlock(dev))
	if err != nil {
		return devs
	}
	related, _ := filepath.Glob(filepath.Join(dir, "*", "partition"))
	for i, p := range related {
		related[i] = filepath.Dir(p)
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		related = append(related, filepath.Dir(dir))
	}
	for _, d := range related {
		text, _ := os.ReadFile(filepath.Join(d, "dev"))
		if n, ok := parseDevice(strings.TrimSpace(string(text))); ok {
			devs[n] = true
		}
	}
	return devs
}

func parseDevice(text string) (uint64, bool) {
	var major, minor uint32
	_, err := fmt.Sscanf(text, "%d:%d", &major, &minor)
	return unix.Mkdev(major, minor), err == nil
}

// mountPoint returns where a file system on one of the devices is mounted, by mountinfo (proc(5)):
// ID PARENT MAJOR:MINOR ROOT MOUNT-POINT ... - TYPE SOURCE OPTIONS. Some file systems (btrfs) have
// a device number of their own, and the device only as source.
func mountPoint(devs map[uint64]bool) string {
	text, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(text)) {
		before, after, _ := strings.Cut(line, " - ")
		mount, fsys := strings.Fields(before), strings.Fields(after)
		if len(mount) < 5 || len(fsys) < 2 {
			continue
		}
		dev, ok := parseDevice(mount[2])
		if ok && devs[dev] || strings.HasPrefix(fsys[1], "/dev/") &&
			devs[nodeDevice(unescapeOctal(fsys[1]))] {
			return unescapeOctal(mount[4])
		}
	}
	return ""
}

// nodeDevice returns the number of the device at path; 0: none.
func nodeDevice(path string) uint64 {
	st, err := os.Stat(path)
	if err != nil || st.Mode()&fs.ModeDevice == 0 {
		return 0
	}
	return st.Sys().(*syscall.Stat_t).Rdev
}

// unescapeOctal decodes the blanks and backslashes of paths in files of proc: \040.
func unescapeOctal(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
