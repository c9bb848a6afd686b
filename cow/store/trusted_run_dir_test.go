package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

// No sockets are made in a run directory that another user has made or can replace: that user could
// put own sockets there.
func TestRunDirsOfOthers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it changes the owners of files")
	}
	const attacker = nobody - 1
	made := func(t *testing.T, dir string, mode os.FileMode, uid int) {
		t.Helper()
		test.Must(t, os.MkdirAll(dir, 0o755))
		test.Must(t, os.Chown(dir, uid, uid))
		test.Must(t, os.Chmod(dir, mode))
	}
	public := os.ModeSticky | 0o777
	for _, c := range []struct {
		name string
		make func(t *testing.T, run string) // $XDG_RUNTIME_DIR, in which cowblk/ will be
		want string                         // empty: it is used
	}{
		{"as logging in does", func(t *testing.T, run string) { made(t, run, 0o700, nobody) }, ""},
		{"a public one", func(t *testing.T, run string) { made(t, run, public, 0) }, ""},
		{"open to all, the user's own", func(t *testing.T, run string) {
			made(t, run, public, 0)
			made(t, run+"/cowblk", 0o777, nobody) // the mode is restricted
		}, ""},
		{"open to all, root's", func(t *testing.T, run string) {
			made(t, run, public, 0)
			made(t, run+"/cowblk", 0o777, 0)
		}, "use a directory of its own"},
		{"open to all, sticky, root's", func(t *testing.T, run string) {
			made(t, run, public, 0)
			made(t, run+"/cowblk", public, 0)
		}, "use a directory of its own"},
		{"another's, open to all", func(t *testing.T, run string) {
			made(t, run, public, 0)
			made(t, run+"/cowblk", 0o777, attacker)
		}, "XDG_RUNTIME_DIR is "},
		{"another's, sticky", func(t *testing.T, run string) {
			made(t, run, public, 0)
			made(t, run+"/cowblk", public, attacker)
		}, "XDG_RUNTIME_DIR is "},
		{"the user's own, in another's", func(t *testing.T, run string) {
			made(t, run, 0o777, attacker)
			made(t, run+"/cowblk", 0o711, nobody)
		}, "XDG_RUNTIME_DIR is "},
		{"another's link to the user's own", func(t *testing.T, run string) {
			made(t, run, public, 0)
			made(t, run+"2", 0o711, nobody)
			test.Must(t, os.Symlink(run+"2", run+"/cowblk"))
			test.Must(t, os.Lchown(run+"/cowblk", attacker, attacker))
		}, "XDG_RUNTIME_DIR is "},
	} {
		t.Run(c.name, func(t *testing.T) {
			top, err := os.MkdirTemp("", "cowblk")
			test.Must(t, err)
			t.Cleanup(func() { os.RemoveAll(top) })
			test.Must(t, os.Chmod(top, 0o755))
			run := filepath.Join(top, "run")
			c.make(t, run)
			out := asChild(t, "rundir", filepath.Join(top, "data"), run)
			if c.want == "" && out != "done" || c.want != "" && (!strings.Contains(out, c.want) ||
				!strings.Contains(out, run)) {
				t.Errorf("%s", out)
			}
		})
	}
}

// The same for the run directory in a store, and for files in its place.
func TestRunDirInStore(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it changes the owners of files")
	}
	for name, take := range map[string]func(run string) error{
		"another's": func(run string) error {
			return errors.Join(os.Mkdir(run, 0o755), os.Chown(run, nobody, nobody))
		},
		"a link to another's": func(run string) error {
			other := run + "2"
			return errors.Join(os.Mkdir(other, 0o755), os.Chown(other, nobody, nobody),
				os.Symlink(other, run))
		},
		"a group's": func(run string) error {
			return errors.Join(os.Mkdir(run, 0o755), os.Chmod(run, 0o770))
		},
	} {
		s := newStore(t)
		create(t, s, "vm1", CreateOptions{Size: 1 << 20})
		test.Must(t, take(s.runDir))
		if err := s.MakeRunDir(); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(),
			"run directory "+s.runDir) {
			t.Errorf("%s: %v", name, err)
		}
		test.ErrorIs(t, s.makeOwnDir(s.runDir), ErrInvalid, fmt.Sprintf("%s, for a control socket",
			name))
		var st unix.Stat_t
		if err := unix.Lstat(s.runDir, &st); err != nil || name == "another's" &&
			st.Mode&0o777 != 0o755 {
			t.Errorf("%s: mode %o, %v", name, st.Mode, err)
		}
	}
}
