package layer

import (
	"errors"
	"fmt"

	"cowblk/cow/finding"
)

// One sentinel per decision of a caller. Every error of this package about a layer's content wraps
// exactly one of them.
var (
	// another file, or never formatted
	ErrNotLayer = errors.New("not a cowblk map")
	// written by a newer program
	ErrUnsupported = errors.New("unsupported map format")
	// checksum, truncation, impossible values
	ErrDamaged = errors.New("damaged layer")
	// valid, but another layer is expected here
	ErrMismatch = errors.New("not the expected layer")
	// it may be read, never written
	ErrSealed = errors.New("the layer is sealed")
	// a head where a sealed layer is required
	ErrNotSealed = errors.New("the layer is not sealed")
	// locked by another open file
	ErrInUse = errors.New("the layer is in use")
	// formatting would destroy content
	ErrNotZero      = errors.New("the map is not empty")
	ErrNoTableSpace = errors.New("no space for a table behind the map") // for checksums of the data
	ErrInvalid      = errors.New("invalid layer parameters")
	ErrSyncFailed   = errors.New("a sync of the layer failed")
	ErrNoShared     = errors.New("no shared map can be made")
	// ErrUnflushed: a process has died in this run of the kernel, and the shared map with its
	// unflushed bits cannot be read or validated.
	ErrUnflushed = errors.New("unflushed writes of a process that died cannot be recovered")
)

// Advice for several checks that lead to the same next step.
const (
	adviceRestore = "restore the layer from a copy"
	adviceUpgrade = "use the program that wrote it, or a newer cowblk"
	adviceFiles   = "check that the disk's manifest names the right files"
	adviceParams  = "choose another value"
	// The writes may be recoverable once the cause is gone, so they are dropped only on request.
	adviceUnflushed = "make the file readable where it was and try again; or, if the guest was restarted since or its last writes may be lost as at a power cut, serve the disk with --drop-unflushed"
)

// withPath sets the file of a finding in memory.
func withPath(path string, err error) error {
	var f *finding.Finding
	if errors.As(err, &f) && f.File == "" {
		f.File = path
	}
	return err
}

// addContext says in an error, unless it is nil, what was being done.
func addContext(err *error, doing string) {
	if *err != nil {
		*err = fmt.Errorf("%s: %w", doing, *err)
	}
}
