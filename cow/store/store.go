package store

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"cowblk/cow/finding"
	"cowblk/cow/shell"
	"cowblk/cow/vfs"
)

// Directories and files of a store; see the package comment.
const (
	imagesDir     = "images"
	layersDir     = "layers"
	disksDir      = "disks"
	tmpDir        = "tmp"
	indexDir      = "index"
	reserveDir    = "reserve"
	lockFile      = "lock"
	imageFile     = "image.json"
	diskFile      = "disk.json"
	dataFile      = "data"
	mapFile       = "map"
	indexFile     = "disks"
	checksumsFile = "sums" // of a layer whose data lies outside the store
	systemDir     = "/var/lib/cowblk"
	systemRun     = "/run/cowblk"
	programDir    = "cowblk"

	// runtimeEnv names the user's run directory (XDG Base Directory Specification). A relative path
	// is ignored.
	runtimeEnv = "XDG_RUNTIME_DIR"
)

// Options for Open; the zero value is usable.
type Options struct {
	FS  vfs.FS       // default: vfs.OS
	Log *slog.Logger // default: slog.Default
	// Getenv reads the environment variables that select the run directory; default: os.Getenv.
	Getenv func(string) string
	// LockTimeout limits the wait for another process's change; default: 10 s.
	LockTimeout time.Duration
	// Now returns the time for manifests; default: time.Now.
	Now func() time.Time
	// Command is the shell command of the program on this store, for the advice in errors. Default:
	// cowblk.
	Command string
}

// Store is one directory of images and disks. Its methods are safe for concurrent use by goroutines
// and processes.
type Store struct {
	dir         string // absolute
	runDir      string // absolute
	fs          vfs.FS
	log         *slog.Logger
	getenv      func(string) string
	lockTimeout time.Duration
	now         func() time.Time
	program     string        // Options.Command
	clockMargin time.Duration // see defaultClockMargin

	trustMu      sync.Mutex
	trustKnown   bool
	trustErr     error       // result of trustedPath, if trustKnown
	recognized   atomic.Bool // the directory is a store: see recognize
	restrictOnce sync.Once
	reserveOnce  sync.Once
	releasedSize atomic.Int64 // size of a removed file, in bytes
	// files of the reserve that this Store has removed and not created again
	released  atomic.Int32
	waiters   waiters  // for the store's lock
	diskLocks sync.Map // keys: the *Lock of each disk that is locked
	holders   holderCache
}

// Open returns the store in dir. It creates nothing: a missing directory is an empty store, which
// the first change creates.
func Open(dir string, o Options) (*Store, error) {
	if dir == "" {
		return nil, finding.Invalidf("the store's directory has no name")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", dir, err)
	}
	if o.FS == nil {
		o.FS = vfs.OS{}
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Getenv == nil {
		o.Getenv = os.Getenv
	}
	if o.LockTimeout == 0 {
		o.LockTimeout = 10 * time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Command == "" {
		o.Command = programDir
	}
	st, err := o.FS.Stat(dir)
	switch {
	case err == nil && !st.IsDir():
		return nil, finding.Invalidf("store %s is not a directory", dir)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("store %s: %w", dir, err)
	case err != nil:
		if err := refuseDangling(o.FS, dir); err != nil {
			return nil, err
		}
	}
	run := runDir(dir, o.Getenv)
	if other := replaceRunDir(&o, dir, run); other != "" {
		run = other
	}
	return &Store{
		dir: dir, runDir: run,
		fs: o.FS, log: o.Log, getenv: o.Getenv, lockTimeout: o.LockTimeout, now: o.Now,
		program:     o.Command,
		clockMargin: defaultClockMargin,
	}, nil
}

// DefaultDir returns the default store: /var/lib/cowblk for root, $XDG_DATA_HOME/cowblk (default
// ~/.local/share/cowblk) for other users. ErrInvalid: no home directory.
func DefaultDir(getenv func(string) string) (string, error) {
	if os.Geteuid() == 0 {
		return systemDir, nil
	}
	if d := getenv("XDG_DATA_HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, programDir), nil
	}
	if home := getenv("HOME"); home != "" {
		return filepath.Join(home, ".local", "share", programDir), nil
	}
	return "", finding.Invalidf(
		"no place for the store: neither XDG_DATA_HOME nor HOME is set; use --store DIR or COWBLK_STORE")
}

// Dir returns the store's absolute directory.
func (s *Store) Dir() string { return s.dir }

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

// names returns the sorted entries of one of the store's directories that have valid names.
func (s *Store) names(dir string) ([]string, error) {
	entries, err := s.readDir(s.path(dir))
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", s.dir, err)
	}
	var names []string
	for _, e := range entries {
		if CheckName("", e.Name()) == nil && (e.IsDir() || s.linkToDirectory(dir, e)) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// readDir lists a directory in the order of names; a missing one is empty.
func (s *Store) readDir(path string) ([]fs.DirEntry, error) {
	entries, err := s.fs.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return entries, err
}

// lstat is Stat that does not follow a symbolic link at the end. The file systems of tests have
// none.
func (s *Store) lstat(path string) (fs.FileInfo, error) {
	if _, real := s.fs.(vfs.HostFS); real {
		return os.Lstat(path)
	}
	return s.fs.Stat(path)
}

// readAll reads all documents of a directory in the order of names. It skips unreadable ones and
// joins their errors.
func readAll[T any](s *Store, dir string, read func(name string) (T, error)) ([]T, error) {
	names, err := s.names(dir)
	if err != nil {
		return nil, err
	}
	var all []T
	var errs []error
	for _, name := range names {
		switch v, err := read(name); {
		case err == nil:
			all = append(all, v)
		case !errors.Is(err, ErrNotFound): // else removed meanwhile
			errs = append(errs, err)
		}
	}
	return all, errors.Join(errs...)
}

// linkToDirectory reports whether an entry is a symbolic link to a directory, which is accepted as
// a disk or image.
func (s *Store) linkToDirectory(dir string, e fs.DirEntry) bool {
	if e.Type()&fs.ModeSymlink == 0 {
		return false
	}
	st, err := s.fs.Stat(s.path(dir, e.Name()))
	return err == nil && st.IsDir()
}

func (s *Store) exists(path string) (bool, error) {
	_, err := s.fs.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// checkFree returns an ErrExists if an image or a disk has the name. Both share one name space:
// every command accepts either.
func (s *Store) checkFree(name string) error {
	for dir, kind := range map[string]string{imagesDir: KindImage, disksDir: KindDisk} {
		if t := s.notDirectory(kind, name); t != nil {
			return fmt.Errorf(
				"name %q is taken: %s is %s, and no %s: %w\nchoose another name, or move it out of the store", name, shell.Text(t.Path), t.What, kind, ErrExists)
		}
		taken, err := s.exists(s.path(dir, name))
		if err != nil {
			return fmt.Errorf("store %s: %w", s.dir, err)
		}
		if taken {
			return fmt.Errorf("%s %q %w: choose another name (%s shows those taken)", kind, name,
				ErrExists, s.command("list"))
		}
	}
	return nil
}
