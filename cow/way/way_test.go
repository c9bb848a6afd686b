package way

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

const nobody = 65534

// mkdir makes a directory below dir with exactly this mode and owner.
func mkdir(t *testing.T, dir, name string, mode fs.FileMode, uid int) string {
	t.Helper()
	path := filepath.Join(dir, name)
	test.Must(t, os.Mkdir(path, 0o755))
	test.Must(t, os.Chown(path, uid, uid))
	test.Must(t, os.Chmod(path, mode)) // after the change of the owner, which clears bits
	return path
}

// Every directory on the path counts, also those after symbolic links and those that hold the
// links.
func TestWeakWays(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it changes the owners of files")
	}
	top := t.TempDir()
	test.Must(t, os.Chmod(top, 0o755))
	end := func(dir string) string {
		return mkdir(t, mkdir(t, dir, "a", 0o755, 0), "end", 0o711, 0)
	}
	link := func(path, target string, uid int) string {
		test.Must(t, os.Symlink(target, path))
		test.Must(t, os.Lchown(path, uid, uid))
		return path
	}
	good := end(mkdir(t, top, "good", 0o755, 0))
	theirs := mkdir(t, top, "theirs", 0o755, nobody)
	open := mkdir(t, top, "open", 0o777, 0)
	group := mkdir(t, top, "group", 0o775|fs.ModeSetgid, 0)
	sticky := mkdir(t, top, "sticky", 0o777|fs.ModeSticky, 0)
	theirSticky := mkdir(t, top, "theirsticky", 0o777|fs.ModeSticky, nobody)
	inSticky := mkdir(t, sticky, "theirs", 0o755, nobody)
	for _, c := range []struct {
		path string
		weak string // the untrusted directory; empty: none
		end  bool
	}{
		{path: good},
		{path: filepath.Join(good, "..", "end")},
		{path: link(filepath.Join(top, "l1"), good, 0)},
		{path: link(filepath.Join(top, "l2"), "good/../good/a/end", 0)},
		{path: link(filepath.Join(top, "l3"), filepath.Join(top, "l2"), 0) + "/"},
		// Only root can change it, whatever its owner.
		{path: link(filepath.Join(top, "l4"), good, nobody)},
		{path: end(sticky)},
		{path: link(filepath.Join(sticky, "l"), good, 0)},
		{path: end(theirs), weak: theirs},
		{path: theirs, weak: theirs, end: true},
		{path: end(open), weak: open},
		{path: end(group), weak: group},
		{path: end(theirSticky), weak: theirSticky},
		{path: end(inSticky), weak: inSticky},
		{path: inSticky, weak: inSticky, end: true},
		{path: link(filepath.Join(theirs, "l"), good, 0), weak: theirs},
		{path: link(filepath.Join(sticky, "lt"), good, nobody), weak: sticky},
		{path: link(filepath.Join(top, "l5"), filepath.Join(theirs, "l"), 0), weak: theirs},
		{path: link(filepath.Join(top, "l6"), "theirs/../good/a/end", 0), weak: theirs},
		{path: link(filepath.Join(top, "l7"), filepath.Join(theirs, "a/end"), 0), weak: theirs},
		{path: filepath.Join(theirs, "missing", "more"), weak: theirs},
	} {
		weak, err := Check(c.path, Options{})
		switch {
		case err != nil:
			t.Errorf("%s: %v", c.path, err)
		case c.weak == "" && weak != nil:
			t.Errorf("%s: %v", c.path, weak)
		case c.weak != "" && (weak == nil || weak.Dir != c.weak || weak.End != c.end):
			t.Errorf("%s: %+v, expected %s", c.path, weak, c.weak)
		}
	}
	for _, path := range []string{filepath.Join(good, "missing"), filepath.Join(good, "missing",
		"more"), filepath.Join(sticky, "missing")} {
		if weak, err := Check(path, Options{}); weak != nil || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v, %v", path, weak, err)
		}
	}
	if weak, err := Check(filepath.Join(group, "a", "end"), Options{Group: true}); weak != nil ||
		err != nil {
		t.Errorf("a group that is trusted: %v, %v", weak, err)
	}
	for path, group := range map[string]bool{filepath.Join(open, "a"): true,
		filepath.Join(theirs, "a"): true} {
		if weak, err := Check(path, Options{Group: group}); weak == nil || err != nil {
			t.Errorf("%s: %v, %v", path, weak, err)
		}
	}
	link(filepath.Join(top, "loop"), "loop", 0)
	test.ErrorIs(t, test.Err(Check(filepath.Join(top, "loop"), Options{})), unix.ELOOP, "a loop")
	if _, _, err := Open(filepath.Join(theirs, "l"), Options{}); !errors.Is(err, ErrSymlink) {
		t.Errorf("a link of another user's: %v", err)
	}
	checkFiles(t, top)
	weak, _ := Check(filepath.Join(group, "a"), Options{})
	if text := weak.String() + ": " + weak.WhoCanChange(); !strings.Contains(text,
		group+" (user root, group root, mode 2775)") || !strings.Contains(text,
		"the members of group root") {
		t.Error(text)
	}
}

// A link of /proc leads to what a process has open, whatever its text says.
func TestProcLinks(t *testing.T) {
	dir := t.TempDir()
	test.Must(t, os.Chmod(dir, 0o700))
	f, err := os.Open(dir)
	test.Must(t, err)
	defer f.Close()
	path := "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
	test.Must(t, os.Remove(dir))
	test.Must(t, os.Mkdir(dir, 0o777))
	test.Must(t, os.Chmod(dir, 0o777))
	if weak, err := Check(path, Options{}); err != nil || weak != nil {
		t.Errorf("%v, %v", weak, err) // not the directory that has its name now
	}
	test.Must(t, f.Chmod(0o777))
	if weak, err := Check(path, Options{}); err != nil || weak == nil || !weak.End {
		t.Errorf("%v, %v", weak, err)
	}
}

func TestMapped(t *testing.T) {
	for _, c := range []struct {
		text string
		uid  uint32
		want bool
	}{
		{"         0          0 4294967295\n", 65534, true},
		{"0 1000 1\n", 65534, false},
		{"0 1000 1\n", 0, true},
		{"0 1000 1\n1 100000 65536\n", 65534, true},
		{"0 1000 1\n100 100000 10\n", 110, false},
		{"", 65534, true},
		{"?\n", 65534, true},
	} {
		if got := mapped(c.text, c.uid); got != c.want {
			t.Errorf("%q, %d: %v", c.text, c.uid, got)
		}
	}
}

// checkFiles compares FileChecker with CheckFile for everything in a tree, files of others, missing
// ones and links to files included, in both orders.
func checkFiles(t *testing.T, top string) {
	t.Helper()
	var paths []string
	test.Must(t, filepath.WalkDir(top, func(path string, e fs.DirEntry, err error) error {
		paths = append(paths, path, filepath.Join(path, "missing"), filepath.Join(path, "missing",
			"more"), path+"/../x", path+"/")
		if e == nil || !e.IsDir() || err != nil {
			return err
		}
		for name, uid := range map[string]int{"file": 0, "their file": nobody} {
			name = filepath.Join(path, name)
			test.Must(t, os.WriteFile(name, nil, 0o644))
			test.Must(t, os.Lchown(name, uid, uid))
			test.Must(t, os.Symlink(name, name+" link"))
			paths = append(paths, name, name+" link", filepath.Join(name, "below"))
		}
		return nil
	}))
	paths = append(paths, "/", "", "relative", "/proc/self/exe", "/dev/null")
	for _, o := range []Options{{}, {Group: true}} {
		checker := FileChecker{Options: o}
		for range 2 {
			for _, path := range paths {
				want, werr := CheckFile(path, o)
				got, gerr := checker.CheckFile(path)
				if (want == nil) != (got == nil) || want != nil && *want != *got ||
					!errors.Is(gerr, errnoOf(werr)) {
					t.Errorf("%+v, %q: %+v, %v; CheckFile: %+v, %v", o, path, got, gerr, want, werr)
				}
			}
			slices.Reverse(paths)
		}
		checker.Close()
	}
}

// errnoOf returns the system's error in err; nil: none.
func errnoOf(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
