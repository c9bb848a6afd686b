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

// Rules are the files that stay within reach. A rule for a directory is one for
// all that lies beneath it, now or later; it holds for the directory itself and
// not for its name. What does not exist is left out.
type Rules struct {
	// Change are directories in which regular files and directories are read,
	// written, made and removed, and renamed from one of these to another.
	Change []string
	// Write are files and devices that are read and written.
	Write []string
	// Read are files, devices and directories that are read.
	Read []string
	// Sockets are directories in which UNIX sockets are made and removed, by way of
	// directories in them where others can change these (control.ListenUnix).
	Sockets []string
	// Abstract leaves abstract UNIX sockets within reach.
	Abstract bool
}

// Report says what has been done.
type Report struct {
	ABI     int      // version of landlock that the process is confined with; 0: it is not
	Reason  string   // why it is not
	Missing []string // what a newer kernel would have taken away too
}

// minABI is the first version that lets files be renamed between directories.
const minABI = 2

// Rights of landlock by what they are for.
const (
	readFile = ll.AccessFSReadFile | ll.AccessFSIoctlDev
	readAll  = ll.AccessFSReadFile | ll.AccessFSIoctlDev | ll.AccessFSReadDir
	write    = ll.AccessFSReadFile | ll.AccessFSIoctlDev | ll.AccessFSWriteFile | ll.AccessFSTruncate
	change   = ll.AccessFSReadFile | ll.AccessFSWriteFile | ll.AccessFSTruncate | ll.AccessFSReadDir | ll.AccessFSMakeReg | ll.AccessFSMakeDir | ll.AccessFSRemoveFile | ll.AccessFSRemoveDir | ll.AccessFSRefer
	socket   = ll.AccessFSReadDir | ll.AccessFSMakeSock | ll.AccessFSRemoveFile | ll.AccessFSMakeDir | ll.AccessFSRemoveDir | ll.AccessFSRefer
)

// handled is everything that is denied unless a rule allows it.
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

// Confine restricts this process to the rules. It cannot be undone, and applies
// to what the process executes or forks, too. With On a kernel that cannot do it
// is no error but a report; with Require it is an ErrUnsupported.
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
	// The best that this kernel can: it is known to be enough by now.
	if err := handled(&r).BestEffort().Restrict(rules...); err != nil {
		return Report{}, fmt.Errorf("landlock: %w", err)
	}
	return Report{ABI: abi, Missing: missing(abi, &r)}, nil
}

// supported is the version of landlock to be used, or 0 and why there is none.
func supported() (abi int, reason string) {
	abi, err := ll.LandlockGetABIVersion()
	switch {
	case errors.Is(err, unix.ENOSYS):
		return 0, "landlock is not built into it, or forbidden to this process: expected Linux 5.19 or later"
	case errors.Is(err, unix.EOPNOTSUPP):
		return 0, `landlock is switched off: boot with "landlock" in the list lsm=`
	case err != nil:
		return 0, fmt.Sprintf("landlock: %v", err)
	case abi < minABI:
		return 0, fmt.Sprintf("its landlock (version %d) lets no file be renamed between directories: expected Linux 5.19 or later", abi)
	}
	return abi, ""
}

// missing lists what landlock of this version lets through.
func missing(abi int, r *Rules) (list []string) {
	for _, m := range []struct {
		abi  int
		what string
	}{{3, "cutting files short"}, {4, "connecting to TCP ports"}, {6, "signals"}} {
		if abi < m.abi {
			list = append(list, m.what)
		}
	}
	if abi < 6 || r.Abstract {
		list = append(list, "connecting to abstract UNIX sockets")
	}
	return list
}

// compile makes landlock's rules. Those for a file must not have the rights that
// only a directory can have.
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
