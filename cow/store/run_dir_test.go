package store

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The error for a run directory that cannot be made names the variable that it comes from.
func TestBadRuntimeDirIsNamed(t *testing.T) {
	if os.Geteuid() == 0 {
		// Root's run directory does not come from the environment. The text is the same.
		s := &Store{runDir: "", fs: mustStore(t).fs}
		file := filepath.Join(t.TempDir(), "a file")
		must(t, os.WriteFile(file, nil, 0o600))
		s.getenv, s.runDir = func(string) string { return file }, filepath.Join(file, programDir)
		checkRuntimeError(t, s.MakeRunDir(), "'"+file+"'")
		return
	}
	for _, dir := range []string{"/nonexistent/run", "/proc"} {
		home := t.TempDir()
		env := func(k string) string { return map[string]string{"HOME": home, "XDG_RUNTIME_DIR": dir}[k] }
		def, err := DefaultDir(env)
		must(t, err)
		s, err := Open(def, Options{Getenv: env})
		must(t, err)
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
	must(t, os.MkdirAll(s.dir, 0o755))
	must(t, os.WriteFile(s.runDir, nil, 0o600))
	if err := s.MakeRunDir(); err == nil || strings.Contains(err.Error(), "XDG_RUNTIME_DIR") {
		t.Errorf("%v", err)
	}
}

func mustStore(t *testing.T) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "store"), Options{})
	must(t, err)
	return s
}
