package store

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"cowblk/cow/finding"
	"cowblk/cow/shell"
	"cowblk/cow/vfs"
)

// The directories of sockets: the run directory, and others where its path is too long or nothing
// can be created in it.

// maxSocketPath is sizeof(sun_path) less the terminating zero (unix(7)).
const maxSocketPath = 107

// runDir returns the directory of the sockets: the system's or the user's run directory for the
// default store, and a directory inside any other store, so that stores do not share sockets.
func runDir(dir string, getenv func(string) string) string {
	if def, err := DefaultDir(getenv); err == nil && def == dir {
		if d := userRunDir(getenv); d != "" {
			return d
		}
	}
	return filepath.Join(dir, "run")
}

// RunDir returns the absolute directory of the sockets. It may not exist yet.
func (s *Store) RunDir() string { return s.runDir }

// MakeRunDir creates RunDir. Other users may enter it: the mode of each socket controls
// connections. They must not be able to open it: ListenUnix locks it.
func (s *Store) MakeRunDir() error {
	dir := s.getenv(runtimeEnv)
	if dir != "" && !filepath.IsAbs(dir) && os.Geteuid() != 0 {
		s.log.Warn("an environment variable is ignored: expected an absolute path", "variable",
			runtimeEnv, "found", dir, "run_directory", s.runDir)
	}
	err := s.makeRunDir(s.runDir)
	if dir := s.getenv(runtimeEnv); err != nil && !errors.Is(err, ErrInvalid) &&
		filepath.IsAbs(dir) && s.runDir == filepath.Join(dir, programDir) {
		err = fmt.Errorf("%w: %s is %s: set it to a directory that you can write to, as logging in does", err, runtimeEnv, shell.Word(dir))
	}
	return err
}

// Socket returns the path of the disk's vhost-user socket. ErrInvalid: the path is too long.
func (s *Store) Socket(name string) (string, error) {
	p := filepath.Join(s.runDir, name+".sock")
	if len(p) > maxSocketPath {
		return "", finding.Invalidf(
			"socket path %s has %d bytes, a UNIX socket allows %d: use a store with a shorter path, or --socket-path",
			p, len(p), maxSocketPath)
	}
	return p, nil
}

// replaceRunDir returns a directory of this user, named after the store in dir, if the run
// directory run lies in a store that is not writable; empty: run can be used.
func replaceRunDir(o *Options, dir, run string) string {
	host, ok := o.FS.(vfs.HostFS)
	if !ok || !within(dir, run) {
		return ""
	}
	// Check the nearest existing directory.
	for at := run; within(dir, at); at = filepath.Dir(at) {
		err := host.Writable(at)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if !cannotWrite(err) {
			return ""
		}
		break
	}
	if _, err := o.FS.Stat(dir); err != nil {
		return ""
	}
	return otherRunDir(o.Getenv, dir)
}

// otherRunDir returns a directory of this user that is named after the store in dir and lies
// outside it.
func otherRunDir(getenv func(string) string, dir string) string {
	return filepath.Join(otherRunDirs(getenv)[0], "store-"+shortName(dir))
}

// OtherRunDir returns a directory for sockets that RunDir has no space for. It need not exist.
func (s *Store) OtherRunDir() string { return otherRunDir(s.getenv, s.dir) }

// MakeOtherRunDir creates OtherRunDir.
func (s *Store) MakeOtherRunDir() error { return s.makeRunDir(s.OtherRunDir()) }

func (s *Store) makeRunDir(dir string) error {
	if parent := filepath.Dir(dir); parent == ownMemoryDir() {
		if sfs, ok := s.fs.(vfs.SharedFS); ok {
			if err := sfs.MakeSharedDir(parent); err != nil {
				return fmt.Errorf("run directory: %w", err)
			}
		}
	}
	if err := s.makeDir(dir); err != nil {
		return fmt.Errorf("run directory: %w", err)
	}
	if err := s.trustedRunDir(dir, true); err != nil {
		return err
	}
	s.restrictDir(filepath.Dir(dir), filepath.Base(dir), enterPerm)
	return s.trustedRunDir(dir, false)
}

// CannotCreate reports whether an error means that nothing can be created in a directory: no space,
// no quota, or a read-only file system.
func CannotCreate(err error) bool { return noSpace(err) || errors.Is(err, unix.EROFS) }

// within reports whether path is dir or below it. Both must be clean.
func within(dir, path string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

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
	for _, dir := range otherRunDirs(s.getenv) {
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
func otherRunDirs(getenv func(string) string) (dirs []string) {
	if d := userRunDir(getenv); d != "" {
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
