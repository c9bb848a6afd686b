package sandbox

import (
	"errors"
	"fmt"
	"os"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// ErrUnsupported says that this kernel cannot confine the process.
var ErrUnsupported = errors.New("this kernel cannot confine a process")

// Rules lists the files that stay accessible. A rule for a directory covers everything below it,
// now and later, and follows the directory when it is renamed. Paths that do not exist are ignored.
type Rules struct {
	// Change lists directories in which regular files and directories may be read, written, made,
	// removed, and renamed between these directories.
	Change []string
	// Write lists files and devices that may be read and written.
	Write []string
	// Read lists files, devices and directories that may be read.
	Read []string
	// Sockets lists directories in which UNIX sockets may be made and removed. It includes making
	// and removing directories, which control.ListenUnix needs.
	Sockets []string
	// Abstract keeps abstract UNIX sockets accessible.
	Abstract bool
}

// Report describes the confinement.
type Report struct {
	ABI     int      // version of landlock in force; 0: none
	Reason  string   // why there is none
	Missing []string // restrictions that need a newer kernel
}

// minABI is the first version that permits renaming between directories.
const minABI = 2

// Landlock rights of each kind of rule.
const (
	readFile = ll.AccessFSReadFile | ll.AccessFSIoctlDev
	readAll  = readFile | ll.AccessFSReadDir
	write    = readFile | ll.AccessFSWriteFile | ll.AccessFSTruncate
	inDir    = ll.AccessFSReadDir | ll.AccessFSMakeDir | ll.AccessFSRemoveFile |
		ll.AccessFSRemoveDir | ll.AccessFSRefer
	change = inDir | ll.AccessFSReadFile | ll.AccessFSWriteFile | ll.AccessFSTruncate |
		ll.AccessFSMakeReg
	socket = inDir | ll.AccessFSMakeSock
)

// handled returns the rights that are denied unless a rule grants them.
func handled(r *Rules) landlock.Config {
	scoped := landlock.ScopedSet(ll.ScopeSignal | ll.ScopeAbstractUnixSocket)
	if r.Abstract {
		scoped = ll.ScopeSignal
	}
	return landlock.Config{
		HandledAccessFS:  landlock.V8.HandledAccessFS,
		HandledAccessNet: ll.AccessNetConnectTCP,
		Scoped:           scoped,
	}
}

// Confine restricts this process, its threads and its future children to the rules. It cannot be
// undone. If the kernel does not support it, On returns a Report with a Reason and Require returns
// ErrUnsupported.
func Confine(m Mode, r Rules) (Report, error) {
	if m == Off {
		return Report{Reason: "it was not asked for"}, nil
	}
	if err := ll.AllThreadsPrctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return Report{}, fmt.Errorf("set no_new_privs: %w", err)
	}
	abi, reason := supported()
	if abi == 0 {
		if m == Require {
			return Report{}, fmt.Errorf("%w: %s", ErrUnsupported, reason)
		}
		return Report{Reason: reason}, nil
	}
	rules, err := r.compile()
	if err != nil {
		return Report{}, err
	}
	// BestEffort suffices: supported has checked the minimum.
	if err := handled(&r).BestEffort().Restrict(rules...); err != nil {
		return Report{}, fmt.Errorf("landlock: %w", err)
	}
	return Report{ABI: abi, Missing: missing(abi, &r)}, nil
}

// supported returns the version of landlock; 0 and the reason if it cannot be used.
func supported() (abi int, reason string) {
	abi, err := ll.LandlockGetABIVersion()
	switch {
	case errors.Is(err, unix.ENOSYS):
		return 0, "landlock is not built into it, or forbidden to this process: expected Linux " +
			"5.19 or later"
	case errors.Is(err, unix.EOPNOTSUPP):
		return 0, `landlock is switched off: boot with "landlock" in the list lsm=`
	case err != nil:
		return 0, fmt.Sprintf("landlock: %v", err)
	case abi < minABI:
		return 0, fmt.Sprintf("its landlock (version %d) lets no file be renamed between "+
			"directories: expected Linux 5.19 or later", abi)
	}
	return abi, ""
}

// missing lists the restrictions that landlock of this version does not have.
func missing(abi int, r *Rules) (list []string) {
	for _, m := range []struct {
		abi  int
		what string
	}{{3, "truncating files"}, {4, "connecting to TCP ports"}, {6, "signals"}} {
		if abi < m.abi {
			list = append(list, m.what)
		}
	}
	if abi < 6 || r.Abstract {
		list = append(list, "connecting to abstract UNIX sockets")
	}
	return list
}

// compile returns landlock's rules. A rule for a file must not contain rights of directories.
func (r *Rules) compile() (rules []landlock.Rule, err error) {
	add := func(path string, inFile, inDir landlock.AccessFSSet) {
		st, serr := os.Stat(path)
		switch {
		case errors.Is(serr, os.ErrNotExist):
			return
		case serr != nil:
			err = errors.Join(err, fmt.Errorf("confine: %w", serr))
			return
		}
		access := inFile
		if st.IsDir() {
			access = inDir
		}
		if access == 0 {
			err = errors.Join(err, fmt.Errorf("confine: %s: expected a directory", path))
			return
		}
		rules = append(rules, landlock.PathAccess(access, path).IgnoreIfMissing())
	}
	for _, path := range r.Change {
		add(path, 0, change)
	}
	for _, path := range r.Write {
		add(path, write, 0)
	}
	for _, path := range r.Read {
		add(path, readFile, readAll)
	}
	for _, path := range r.Sockets {
		add(path, 0, socket)
	}
	return rules, err
}
