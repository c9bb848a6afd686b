package store

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
)

// ControlSocket is the path of a new control socket of the process that serves the disk, in the run directory, which may
// not exist yet, or in another one, which it makes. Nobody has to know the path: the disk's lock file says it (Serving). It is NAME.ctl in the run directory. Where that
// is longer than a UNIX socket allows it is a short name there, and where the store's own path is too long for any, one
// in the system's or this user's run directory, or in /dev/shm/cowblk-UID (see ownMemoryDir).
func (s *Store) ControlSocket(name string) (string, error) {
	if err := CheckName("disk", name); err != nil {
		return "", err
	}
	// No disk's name begins with a dot.
	for _, file := range []string{name + ".ctl", "." + shortName(name) + ".ctl"} {
		if p := filepath.Join(s.runDir, file); len(p) <= maxSocketPath {
			return p, nil
		}
	}
	var errs []error
	for _, dir := range s.otherRunDirs() {
		p := filepath.Join(dir, "."+shortName(s.dir+"\x00"+name)+".ctl")
		if len(p) > maxSocketPath {
			continue
		}
		err := s.makeOwnDir(dir)
		if err == nil {
			return p, nil
		}
		errs = append(errs, err)
	}
	return "", fmt.Errorf("control socket of disk %q: no directory for it: the path of run directory %s is too long: %w", name, s.runDir, errors.Join(errs...))
}

// shortName is 16 characters that differ where names differ.
func shortName(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:8])
}

// otherRunDirs are directories with short paths, in the order in which they are tried.
func (s *Store) otherRunDirs() (dirs []string) {
	if d := userRunDir(s.getenv); d != "" {
		dirs = append(dirs, d)
	}
	return append(dirs, ownMemoryDir())
}

// makeOwnDir makes a directory, or finds it made, that nobody but this user and root can change: a socket in it is the
// one that was put there.
func (s *Store) makeOwnDir(dir string) error {
	if err := s.fs.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return s.trustedRunDir(dir, false)
}
