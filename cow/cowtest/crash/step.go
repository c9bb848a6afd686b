package crash

import (
	"fmt"
	"strings"

	"cowblk/cow"
	"cowblk/cow/cowtest"
)

// Step is one step of a script. Its text is one line:
//
//	import IMAGE [N|N+raw]             a chain of N qcow2 files, with "+raw" on a raw file; default: a raw file
//	create DISK SIZE BLOCKSIZE [FROM]
//	open DISK [share] | close DISK     share: with --force-share, for a locked base
//	stop DISK                          as cowblk stop: a last flush, which waits for space, then close
//	take-over DISK                     to another process, while it is open
//	write|discard|write-zeroes DISK OFFSET+LENGTH [fua]
//	flush DISK
//	promote DISK[,DISK] TAG            live if the disks are open
//	sum DISK                           add data checksums to its sealed layers, while it is open
//	rollback DISK TAG
//	remove NAME
//	damage DISK cut|bit|empty          damage its manifest, outside any program
//	lock-base flock|image|writer       another process locks the base, and keeps it locked
//	unlock-base
//	room N                             number of free pages of the file system; -1: no limit
//	check [repair]
//	mend DISK                          restore its manifest
//	remove-damaged DISK
//	wait                               until nothing is in flight
//	kill                               the process, and start another
//	kill N                             the same after N changes by the next step
//	kill swapped                       between the swap of a live promotion and its end
//	hold DISK TAG                      another process opens the tag, and keeps it open
//	release DISK TAG                   that process closes the tag
//	peek DISK                          another process reads a disk that is not open
//	detach DISK                        for another process, which does not open it at once
//	open-fault DISK N                  open, and the N-th call that is not a sync fails
//	fault N                            the N-th call of the next change of the store fails
//	fault N sync                       the N-th sync of a file from now on fails
//	full N store|run                   the next N calls that need space find none
//	older DISK close|kill              an older version has the disk open for a while
//	version older|now                  a version without the index makes the next changes
//	sleep                              longer than the interval of background flushes
//
// Sizes are in bytes. FROM is an image, DISK@TAG, or the base, /base.raw.
type Step struct {
	Verb string
	Name string // disks with commas between them
	Arg  string // tag or FROM
	Op   cowtest.Op
	Size int64
	Unit int // block size
}

// String returns the step's line.
func (s Step) String() string {
	switch s.Verb {
	case "write", "discard", "write-zeroes", "flush":
		f := strings.Fields(s.Op.String())
		return strings.Join(append([]string{f[0], s.Name}, f[1:]...), " ")
	case "create":
		return strings.TrimSpace(fmt.Sprintf("create %s %d %d %s", s.Name, s.Size, s.Unit, s.Arg))
	}
	return strings.TrimSpace(s.Verb + " " + s.Name + " " + s.Arg)
}

// guest reports whether the step is a guest's request.
func (s Step) guest() bool { return s.Op.Op != 0 }

// changesStore reports whether the step changes the store and has its own note of the begin.
func (s Step) changesStore() bool {
	switch s.Verb {
	case "import", "create", "promote", "rollback", "remove", "remove-damaged":
		return true
	}
	return false
}

// Parse reads a script: one step a line. Empty lines are ignored.
func Parse(text string) ([]Step, error) {
	var out []Step
	for _, line := range strings.Split(text, "\n") {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		s, err := parse(f)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", line, err)
		}
		out = append(out, s)
	}
	return out, nil
}

func parse(f []string) (Step, error) {
	s := Step{Verb: f[0]}
	if len(f) > 1 {
		s.Name = f[1]
	}
	ops := map[string]cow.Op{"write": cow.OpWrite, "discard": cow.OpDiscard,
		"write-zeroes": cow.OpWriteZeroes, "flush": cow.OpFlush}
	op, guest := ops[s.Verb]
	switch {
	case guest:
		s.Op.Op = op
		for _, w := range f[2:] {
			var r cow.Range
			if w == "fua" {
				s.Op.FUA = true
			} else if _, err := fmt.Sscanf(w, "%d+%d", &r.Offset, &r.Length); err != nil {
				return s, err
			} else {
				s.Op.Ranges = append(s.Op.Ranges, r)
			}
		}
	case s.Verb == "create":
		if len(f) < 4 {
			return s, fmt.Errorf("expected a size and a block size")
		}
		if _, err := fmt.Sscan(f[2], &s.Size); err != nil {
			return s, err
		}
		if _, err := fmt.Sscan(f[3], &s.Unit); err != nil {
			return s, err
		}
		if len(f) > 4 {
			s.Arg = f[4]
		}
	case len(f) > 2:
		s.Arg = f[2]
	}
	return s, nil
}

// Text returns the script in the form that Parse reads.
func Text(script []Step) string {
	var b strings.Builder
	for _, s := range script {
		b.WriteString(s.String() + "\n")
	}
	return b.String()
}
