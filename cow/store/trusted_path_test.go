package store

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"cowblk/cow"
	"cowblk/internal/test"
)

// Root makes, serves and removes nothing in a store through which another user could lead it
// elsewhere.
func TestStoresOfOthers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it changes the owners of files")
	}
	for _, c := range []struct {
		name, found string
		plant       func(t *testing.T, dir, victim string)
	}{
		{"owned by another", "found one of user nobody", func(t *testing.T, dir, _ string) {
			test.Must(t, os.Chown(dir, nobody, nobody))
		}},
		{"others may write", "use a directory of its own", func(t *testing.T, dir, _ string) {
			test.Must(t, os.Chmod(dir, 0o777))
		}},
		{"others may write, sticky", "use a directory of its own", func(t *testing.T, dir,
			_ string) {
			test.Must(t, os.Chmod(dir, 0o777|os.ModeSticky))
		}},
		{"its group may write", "use a directory of its own", func(t *testing.T, dir, _ string) {
			test.Must(t, os.Chmod(dir, 0o770))
		}},
		{"the group of its layers may write", "use a directory of its own", func(t *testing.T, dir,
			_ string) {
			test.Must(t, os.Chmod(filepath.Join(dir, layersDir), 0o770))
		}},
		{"all may write to its disks", "use a directory of its own", func(t *testing.T, dir,
			_ string) {
			test.Must(t, os.Chmod(filepath.Join(dir, disksDir), 0o703))
		}},
		{"layers lead through another's", "user nobody can lead", func(t *testing.T, dir,
			victim string) {
			test.Must(t, os.Rename(filepath.Join(dir, layersDir), filepath.Join(victim, layersDir)))
			test.Must(t, os.Symlink(filepath.Join(victim, layersDir),
				filepath.Join(dir, layersDir)))
			test.Must(t, os.Chown(victim, nobody, nobody))
		}},
		{"above is another's",
			"user nobody can put another store in its place\nput the store elsewhere",
			func(t *testing.T, dir, _ string) {
				test.Must(t, os.Chown(filepath.Dir(dir), nobody, nobody))
			}},
		{"further above is another's", "sudo -u nobody cowblk", func(t *testing.T, dir, _ string) {
			test.Must(t, os.Chown(filepath.Dir(filepath.Dir(dir)), nobody, nobody))
		}},
		{"above is a nameless user's", "sudo -u '#65533' cowblk", func(t *testing.T, dir,
			_ string) {
			test.Must(t, os.Chown(filepath.Dir(dir), nobody-1, nobody-1))
		}},
		{"it and above are another's",
			"in its place\nit is a store of user nobody; run cowblk as that user: sudo -u nobody cowblk ...\nor put", func(t *testing.T, dir, _ string) {
				test.Must(t, os.Chown(dir, nobody, nobody))
				test.Must(t, os.Chown(filepath.Dir(dir), nobody, nobody))
			}},
		{"all may write above", "all users can put", func(t *testing.T, dir, _ string) {
			test.Must(t, os.Chmod(filepath.Dir(dir), 0o777))
		}},
		{"a group may write above", "the members of group nogroup can put", func(t *testing.T, dir,
			_ string) {
			test.Must(t, os.Chown(filepath.Dir(dir), 0, nobody))
			test.Must(t, os.Chmod(filepath.Dir(dir), 0o775|os.ModeSetgid))
		}},
		{"a link of another's is at its place", "user nobody can put", func(t *testing.T, dir,
			_ string) {
			test.Must(t, os.Rename(dir, dir+"2"))
			test.Must(t, os.Symlink(dir+"2", dir))
			test.Must(t, os.Lchown(dir, nobody, nobody))
			test.Must(t, os.Chmod(filepath.Dir(dir), 0o777|os.ModeSticky))
		}},
		{"a link in another's directory is at its place", "user nobody can put",
			func(t *testing.T, dir, victim string) {
				test.Must(t, os.Rename(dir, dir+"2"))
				test.Must(t, os.Symlink(dir+"2", filepath.Join(victim, "link")))
				test.Must(t, os.Chown(victim, nobody, nobody))
				test.Must(t, os.Symlink(filepath.Join(victim, "link"), dir))
			}},
		{"tmp is a link", "of user nobody", func(t *testing.T, dir, victim string) {
			test.Must(t, os.RemoveAll(filepath.Join(dir, tmpDir)))
			test.Must(t, os.Symlink(victim, filepath.Join(dir, tmpDir)))
			test.Must(t, os.Lchown(filepath.Join(dir, tmpDir), nobody, nobody))
		}},
		{"layers of another", "of user nobody", func(t *testing.T, dir, _ string) {
			test.Must(t, os.Chown(filepath.Join(dir, layersDir), nobody, nobody))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStore(t)
			create(t, s, "vm1", CreateOptions{Size: 1 << 20})
			test.Must(t, test.Err(s.Promote(ctx, []string{"vm1"}, "t")))
			victim := t.TempDir()
			test.Must(t, os.MkdirAll(filepath.Join(victim, "db"), 0o700))
			c.plant(t, s.Dir(), victim)
			again, err := Open(s.Dir(), Options{})
			test.Must(t, err)
			_, created := again.Create(ctx, "vm2", CreateOptions{Size: 1 << 20})
			_, opened := again.OpenDisk(ctx, "vm1", OpenOptions{})
			_, read := again.OpenTag(ctx, Ref{Name: "vm1", Tag: "t"}, cow.Options{})
			_, removed := again.Remove(ctx, "vm1")
			for what, err := range map[string]error{"create": created, "open": opened, "tag": read,
				"rm": removed} {
				if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.found) {
					t.Errorf("%s: %v", what, err)
				}
			}
			if _, err := os.Stat(filepath.Join(victim, "db")); err != nil {
				t.Error(err)
			}
			if disks, err := again.Disks(); err != nil || len(disks) != 1 {
				t.Errorf("listed: %v, %v", disks, err)
			}
		})
	}
}

// A directory with foreign content does not become a store, and foreign files in its tmp/ stay.
func TestDirectoryThatIsNoStore(t *testing.T) {
	for _, name := range []string{"tmp/thesis/ch1", "images/photo", "etc/passwd", "layers/x"} {
		dir := t.TempDir()
		file := filepath.Join(dir, name)
		test.Must(t, os.MkdirAll(filepath.Dir(file), 0o755))
		test.Must(t, os.WriteFile(file, []byte("precious"), 0o644))
		test.Must(t, os.Chmod(dir, 0o750))
		s, err := Open(dir, Options{})
		test.Must(t, err)
		if _, err := s.Create(ctx, "vm1", CreateOptions{Size: 1 << 20}); !errors.Is(err,
			ErrInvalid) || !strings.Contains(err.Error(), "empty directory") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(file); err != nil {
			t.Error(err)
		}
		if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o750 {
			t.Errorf("%s: mode of the directory: %v, %v", name, fi.Mode(), err)
		}
	}
	// A mount point that was made beforehand.
	for _, name := range []string{"lost+found", "run"} {
		dir := t.TempDir()
		test.Must(t, os.MkdirAll(filepath.Join(dir, name), 0o755))
		s, err := Open(dir, Options{})
		test.Must(t, err)
		create(t, s, "vm1", CreateOptions{Size: 1 << 20})
		// A foreign directory in tmp/ is no work in progress.
		test.Must(t, os.MkdirAll(s.path(tmpDir, "thesis", "ch1"), 0o755))
		test.Must(t, os.WriteFile(s.path(tmpDir, "notes"), nil, 0o644))
		create(t, s, "vm2", CreateOptions{Size: 1 << 20})
		if _, err := s.Remove(ctx, "vm1"); err != nil {
			t.Error(err)
		}
		if _, err := s.Check(ctx, CheckOptions{Repair: true}); err != nil {
			t.Error(err)
		}
		for _, kept := range []string{"thesis/ch1", "notes"} {
			if _, err := os.Stat(s.path(tmpDir, kept)); err != nil {
				t.Error(err)
			}
		}
	}
}

// A store whose path is not UTF-8 would make disks that cannot be served.
func TestStoreWithoutUTF8(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "st\xff")
	s, err := Open(dir, Options{})
	test.Must(t, err)
	if _, err := s.Create(ctx, "vm1", CreateOptions{Size: 1 << 20}); !errors.Is(err, ErrInvalid) ||
		!strings.Contains(err.Error(), "UTF-8") {
		t.Errorf("create: %v", err)
	}
	test.ErrorIs(t, test.Err(os.Stat(dir)), os.ErrNotExist, "the directory")
}

// nobody is a user who is neither root nor this one.
const nobody = 65534

// asNobody runs the test as an ordinary user in another process if this process is root's. It
// reports whether it did.
func asNobody(t *testing.T) bool {
	t.Helper()
	if os.Geteuid() != 0 {
		return false
	}
	dir, err := os.MkdirTemp("", "cowblk") // only the owner can enter t.TempDir
	test.Must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	binary := readFile(t, os.Args[0])
	self := filepath.Join(dir, "test")
	test.Must(t, os.WriteFile(self, binary, 0o755))
	test.Must(t, os.Chown(dir, nobody, nobody))
	cmd := exec.Command(self, "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TMPDIR="+dir, "HOME="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody,
		Gid: nobody}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("as user %d: %v\n%s", nobody, err, out)
	}
	return true
}

// No user trusts a directory of another user. Directories that a user's own group may write to are
// trusted.
func TestStoresOfOrdinaryUsers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it changes the owners of files")
	}
	for _, c := range []struct {
		name  string
		owner int // of the directory above
		mode  os.FileMode
		want  string // empty: trusted
	}{
		{"root's", 0, 0o755, ""},
		{"the user's", nobody, 0o700, ""},
		{"the user's group's", nobody, 0o775, ""},
		{"operators'", 0, 0o775 | os.ModeSetgid, ""},
		{"a public one", 0, 0o777 | os.ModeSticky, ""},
		{"another's", nobody - 1, 0o755, "user 65533 can put another store in its place"},
		{"another's public one", nobody - 1, 0o777 | os.ModeSticky,
			"user 65533 can put another store in its place"},
		{"everybody's", nobody, 0o777, "all users can put another store in its place"},
	} {
		t.Run(c.name, func(t *testing.T) {
			top, err := os.MkdirTemp("", "cowblk")
			test.Must(t, err)
			t.Cleanup(func() { os.RemoveAll(top) })
			test.Must(t, os.Chmod(top, 0o755))
			above := filepath.Join(top, "above")
			dir := filepath.Join(above, "store")
			test.Must(t, os.MkdirAll(dir, 0o711))
			test.Must(t, os.Chown(dir, nobody, nobody))
			test.Must(t, os.Chown(above, c.owner, nobody))
			test.Must(t, os.Chmod(above, c.mode))
			out := asChild(t, "create", dir, "vm1")
			if c.want == "" && out != "done" || c.want != "" && !strings.Contains(out, c.want) {
				t.Errorf("%s", out)
			}
			if strings.Contains(out, "chmod") || strings.Contains(out, "rm ") {
				t.Errorf("advice that changes what others use: %s", out)
			}
		})
	}
}

// asChild returns the output of child as an ordinary user.
func asChild(t *testing.T, args ...string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cowblk")
	test.Must(t, err)
	defer os.RemoveAll(dir)
	test.Must(t, os.Chmod(dir, 0o755))
	binary := readFile(t, os.Args[0])
	self := filepath.Join(dir, "test")
	test.Must(t, os.WriteFile(self, binary, 0o755))
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childEnv+"="+strings.Join(args, " "))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody,
		Gid: nobody}}
	out, err := cmd.CombinedOutput()
	if err != nil && len(out) == 0 {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// A user who makes the store's directory just before this process does, in a directory where
// everybody may, gains nothing.
func TestStoreMadeByAnotherMeanwhile(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it changes the owners of files")
	}
	above := t.TempDir()
	test.Must(t, os.Chmod(above, 0o777|os.ModeSticky))
	s := openStore(t, filepath.Join(above, "store"))
	test.Must(t, s.Trusted())
	test.Must(t, os.Mkdir(s.dir, 0o755))
	test.Must(t, os.Chown(s.dir, nobody, nobody))
	if _, err := s.openStoreLock(); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(),
		"user nobody") {
		t.Errorf("%v", err)
	}
	if list, err := os.ReadDir(s.dir); err != nil || len(list) > 0 {
		t.Errorf("it holds %v, %v", list, err)
	}
}

// A store behind a symbolic link that leads nowhere is refused, and the directory that is missing
// is named. Once it is there, the store is made in it.
func TestStoreBehindDanglingLink(t *testing.T) {
	for name, c := range map[string]struct{ links, store, missing string }{
		"absolute":       {"l=$/srv/cowblk", "l", "srv/cowblk"},
		"relative":       {"a/l=../srv/cowblk", "a/l", "srv/cowblk"},
		"with a blank":   {"l=my srv", "l", "my srv"},
		"on the way":     {"l=srv", "l/vm/store", "srv"},
		"two links":      {"l=m m=srv", "l", "srv"},
		"a relative dir": {"d=a/b a/b/l=../srv", "d/l", "a/srv"},
	} {
		t.Run(name, func(t *testing.T) {
			top := t.TempDir()
			test.Must(t, os.MkdirAll(filepath.Join(top, "a", "b"), 0o755))
			links := strings.Fields(c.links)
			if name == "with a blank" {
				links = []string{c.links}
			}
			for _, link := range links {
				from, to, _ := strings.Cut(link, "=")
				test.Must(t, os.Symlink(strings.Replace(to, "$", top, 1), filepath.Join(top, from)))
			}
			missing := filepath.Join(top, c.missing)
			quoted := missing
			if strings.Contains(missing, " ") {
				quoted = "'" + missing + "'"
			}
			_, err := Open(filepath.Join(top, c.store), Options{})
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "leads nowhere") ||
				!strings.HasSuffix(err.Error(), "mkdir -p "+quoted) {
				t.Fatalf("%v", err)
			}
			test.Must(t, os.MkdirAll(missing, 0o755))
			create(t, openStore(t, filepath.Join(top, c.store)), "vm1",
				CreateOptions{Size: 1 << 20})
		})
	}
}
