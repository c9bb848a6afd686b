package store

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
)

// ControlSocket returns the path of a new control socket for the process that serves the disk.
// Clients find the path in the disk's lock file (Serving). It is NAME.ctl in the run directory,
// which may not exist yet. If that exceeds the length of a UNIX socket path it is a short name in
// the run directory. If the store's path is too long for that, it lies in the system's or the
// user's run directory or in /dev/shm/cowblk-UID (see ownMemoryDir), which ControlSocket creates.
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

// shortName returns a hash of name in 16 characters.
func shortName(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:8])
}

// otherRunDirs returns directories with short paths, in order of preference.
func (s *Store) otherRunDirs() (dirs []string) {
	if d := userRunDir(s.getenv); d != "" {
		dirs = append(dirs, d)
	}
	return append(dirs, ownMemoryDir())
}

// makeOwnDir creates a directory, or accepts an existing one, that only this user and root can
// change: nobody else can replace a socket in it.
func (s *Store) makeOwnDir(dir string) error {
	if err := s.fs.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return s.trustedRunDir(dir, false)
}
