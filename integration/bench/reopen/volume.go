package reopen

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// volume is a file system that is made anew for each sample: an XFS, or a directory of --dir. The
// run directory of its store is in memory.
type volume struct {
	top   string // a temporary directory in --dir with everything below
	dir   string // directory of the stores
	loop  string // loop device; empty: no file system of its own
	store string // the store that fresh has made
	size  int64  // size of the XFS in bytes; 0: a plain directory
}

func newVolume(ctx context.Context, dir string, size int64) (v *volume, err error) {
	v = &volume{size: size}
	if v.top, err = os.MkdirTemp(dir, "cowreopen"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.close())
		}
	}()
	v.dir = filepath.Join(v.top, "fs")
	if err := os.Mkdir(v.dir, 0o700); err != nil || size == 0 {
		return v, err
	}
	image := filepath.Join(v.top, "xfs")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		return v, err
	}
	if err := os.Truncate(image, size); err != nil {
		return v, err
	}
	// Direct I/O avoids a second copy of everything in the page cache.
	out, err := exec.CommandContext(ctx, "losetup", "--direct-io=on", "--find", "--show",
		image).Output()
	if err != nil {
		return v, fmt.Errorf("losetup %s: %w", image, err)
	}
	v.loop = strings.TrimSpace(string(out))
	return v, nil
}

// fresh removes the last store and makes an empty one.
func (v *volume) fresh(ctx context.Context) error {
	if err := v.clear(); err != nil {
		return err
	}
	if v.loop != "" {
		if err := tool(ctx, "mkfs.xfs", "-q", "-f", v.loop); err != nil {
			return err
		}
		if err := unix.Mount(v.loop, v.dir, "xfs", 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", v.loop, err)
		}
	}
	store := filepath.Join(v.dir, "store")
	run := filepath.Join(store, "run")
	if err := os.MkdirAll(run, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", run, "tmpfs", 0, "mode=0711"); err != nil {
		return fmt.Errorf("mount a tmpfs on %s: %w", run, err)
	}
	v.store = store
	return nil
}

// goingDown is XFS_IOC_GOINGDOWN; with the value 2 it writes neither data nor log.
const goingDown = 0x8004587d

func (v *volume) clear() error {
	if v.store == "" {
		return nil
	}
	if err := unix.Unmount(filepath.Join(v.store, "run"), 0); err != nil {
		return fmt.Errorf("unmount the run directory of %s: %w", v.store, err)
	}
	store := v.store
	v.store = ""
	if v.loop == "" {
		return os.RemoveAll(store)
	}
	f, err := os.Open(v.dir)
	if err != nil {
		return err
	}
	err = errors.Join(unix.IoctlSetPointerInt(int(f.Fd()), goingDown, 2), f.Close())
	if err != nil {
		return fmt.Errorf("shut down the file system at %s: %w", v.dir, err)
	}
	if err := unix.Unmount(v.dir, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", v.dir, err)
	}
	return nil
}

func (v *volume) close() error {
	if err := v.clear(); err != nil {
		return err
	}
	if v.loop != "" {
		if err := tool(context.Background(), "losetup", "--detach", v.loop); err != nil {
			return err
		}
	}
	return os.RemoveAll(v.top)
}

// writeBack writes back the file system's dirty data, which would disturb the next sample.
func (v *volume) writeBack() error {
	f, err := os.Open(v.dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

// allocated returns the allocated bytes of the files that match patterns; a directory counts with
// its content.
func (v *volume) allocated(patterns ...string) (sum int64, err error) {
	for _, p := range patterns {
		names, err := filepath.Glob(filepath.Join(v.store, p))
		if err != nil {
			return 0, err
		}
		for _, name := range names {
			err := filepath.WalkDir(name, func(path string, _ os.DirEntry, err error) error {
				var st unix.Stat_t
				if err == nil {
					err = unix.Lstat(path, &st)
				}
				sum += st.Blocks * 512
				return err
			})
			if err != nil {
				return 0, err
			}
		}
	}
	return sum, nil
}

// record returns the size, in bytes, of the record of unflushed blocks: live files beside the disk,
// or shared maps in the run directory.
func (v *volume) record() (int64, error) {
	return v.allocated("disks/*/live-*", "run/unflushed/*")
}

func tool(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %q: %w\n%s", name, args, err, out)
	}
	return nil
}
