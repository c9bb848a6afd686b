package store

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"cowblk/internal/test"
)

// The error for a run directory that cannot be made names the variable that it comes from.
func TestBadRuntimeDirIsNamed(t *testing.T) {
	if os.Geteuid() == 0 {
		// Root's run directory does not come from the environment. The text is the same.
		s := &Store{runDir: "", fs: mustStore(t).fs}
		file := filepath.Join(t.TempDir(), "a file")
		test.Must(t, os.WriteFile(file, nil, 0o600))
		s.getenv, s.runDir = func(string) string { return file }, filepath.Join(file, programDir)
		checkRuntimeError(t, s.MakeRunDir(), "'"+file+"'")
		return
	}
	for _, dir := range []string{"/nonexistent/run", "/proc"} {
		home := t.TempDir()
		env := func(k string) string {
			return map[string]string{"HOME": home, "XDG_RUNTIME_DIR": dir}[k]
		}
		def, err := DefaultDir(env)
		test.Must(t, err)
		s, err := Open(def, Options{Getenv: env})
		test.Must(t, err)
		checkRuntimeError(t, s.MakeRunDir(), dir)
	}
}

func checkRuntimeError(t *testing.T, err error, dir string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), "XDG_RUNTIME_DIR is "+dir) {
		t.Errorf("%v, expected the variable and %s", err, dir)
	}
}

// The error for a run directory that does not come from the variable does not name it.
func TestRuntimeDirIsNotBlamed(t *testing.T) {
	s := mustStore(t)
	s.getenv = func(string) string { return "/nonexistent/run" }
	test.Must(t, os.MkdirAll(s.dir, 0o755))
	test.Must(t, os.WriteFile(s.runDir, nil, 0o600))
	if err := s.MakeRunDir(); err == nil || strings.Contains(err.Error(), "XDG_RUNTIME_DIR") {
		t.Errorf("%v", err)
	}
}

func mustStore(t *testing.T) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "store"), Options{})
	test.Must(t, err)
	return s
}

// Another user can take the name of a user's directory in memory, in any way, and any other name
// that can be guessed. The user gets another directory, and the same one from then on.
func TestMemoryDirWhoseNameIsTaken(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can make the files of another user")
	}
	const uid, attacker = 1005, 65534
	for name, take := range map[string]func(path string) error{
		"directory":     func(path string) error { return os.Mkdir(path, 0o755) },
		"open to all":   func(path string) error { return os.Mkdir(path, 0o777) },
		"file":          func(path string) error { return os.WriteFile(path, nil, 0o644) },
		"symbolic link": func(path string) error { return os.Symlink("/etc", path) },
	} {
		t.Run(name, func(t *testing.T) {
			shm := t.TempDir()
			plain := filepath.Join(shm, programDir+"-"+strconv.Itoa(uid))
			if got := memoryDirIn(shm, uid); got != plain {
				t.Errorf("nobody has taken it: %s", got)
			}
			for _, path := range []string{plain, plain + "-", plain + "-0000"} {
				test.Must(t, take(path))
				test.Must(t, os.Lchown(path, attacker, attacker))
			}
			mine := memoryDirIn(shm, uid)
			if !strings.HasPrefix(mine, plain+"-") || len(mine) < len(plain)+16 ||
				mine == memoryDirIn(shm, uid) {
				t.Errorf("it can be guessed: %s", mine)
			}
			test.Must(t, os.Mkdir(mine, 0o700))
			test.Must(t, os.Chown(mine, uid, uid))
			if again := memoryDirIn(shm, uid); again != mine {
				t.Errorf("first %s, then %s", mine, again)
			}
			if err := os.Remove(plain); err != nil { // files in the other directory are still found
				t.Fatal(err)
			}
			if again := memoryDirIn(shm, uid); again != mine {
				t.Errorf("first %s, and without the other user's %s", mine, again)
			}
		})
	}
}
