package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"cowblk/cow/finding"
	"cowblk/cow/store"
)

// Exit codes of "cowblk check", as of fsck(8). Wrong usage, an unknown name and an interruption
// have the common codes.
const (
	checkRepaired   = 1
	checkUnrepaired = 4
	checkFailed     = 8
)

// checkStatus is the exit code of a check. If err is nil, the report has been printed and no error
// text follows.
type checkStatus struct {
	code int
	err  error
}

func (c checkStatus) Error() string {
	if c.err == nil {
		return ""
	}
	return c.err.Error()
}

func (c checkStatus) Unwrap() error { return c.err }

const checkLong = `Check images and disks, or without a NAME everything in the store: manifests, headers, maps and lengths
of layers, their order, images and bases, tags, and the remains of interrupted commands. Nothing is
changed without --repair.

A served disk is not disturbed: its sealed layers are checked, its head is not. A head that two disks
share, as after copying a directory, is found only if both disks are checked.

--repair repairs what can be repaired without guessing, reports it, and may be repeated. It does not
change data: a checksum or a count proves the former state of a header or map, and only unused files
are removed. A problem that cannot be repaired stays, and the disk is still refused.

  --fast   read maps only of disks that were not closed in order (a crash), and headers of the others
  --full   also read all data: compare sealed layers with their checksums, and images with their digest
           (chunk-sha256, or sha256 if an earlier version imported them); without --full, only images
           whose file was modified are read

Exit codes: 0 no problem, 1 all problems were repaired, 4 problems are left, 8 something could not be
checked (input or output error, no permission); 2, 3 and 130 as for every command.`

func newCheck(a *app) *cobra.Command {
	var o store.CheckOptions
	var fast, full bool
	cmd := &cobra.Command{
		Use:               "check [NAME...]",
		Aliases:           []string{"fsck"},
		Short:             "Find damage and remains of interrupted commands, and repair them",
		Long:              checkLong,
		Args:              distinctArgs(0, "NAME"),
		Example:           "  cowblk check\n  cowblk check vm1 --repair\n  cowblk check --full --json | jq '.checked[] | select(.problems != [])'",
		ValidArgsFunction: a.complete(-1, diskNames, imageNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case fast && full:
				return usagef("cowblk check: only one of --fast and --full can be given")
			case o.Prune && !o.Repair:
				return usagef("cowblk check: --prune removes layers, and needs --repair")
			case fast:
				o.Depth = store.CheckFast
			case full:
				o.Depth = store.CheckFull
			}
			s, err := a.openStore()
			if err != nil {
				return err
			}
			bars := a.newBars()
			o.Progress, o.Names = bars.update, args
			r, err := s.Check(cmd.Context(), o)
			bars.end()
			interrupted := errors.Is(err, context.Canceled) && r != nil
			if err != nil && !interrupted {
				return checkError(err)
			}
			if a.json {
				if err := a.printJSON(r); err != nil {
					return checkStatus{checkFailed, err}
				}
			} else {
				a.printCheck(r, o.Repair)
			}
			if err := a.outputErr(); err != nil {
				// the other codes require that the report has been read
				return checkStatus{checkFailed, err}
			}
			if interrupted {
				return interruptedf("the check is incomplete; %s repaired so far",
					countText(int64(r.Repaired), "problem"))
			}
			return checkOutcome(r)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.Repair, "repair", false, "repair what can be repaired without guessing")
	f.BoolVar(&o.Prune, "prune", false,
		"with --repair: also remove layers that no disk names, and what is kept for\ndisks whose directories were moved away")
	f.BoolVar(&fast, "fast", false, "read only what a crash may have left unfinished")
	f.BoolVar(&full, "full", false, "read all data, and compute the digests of the images")
	return cmd
}

// checkError keeps the errors that have a common exit code. Any other error means that the check
// did not run.
func checkError(err error) error {
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrInvalid) ||
		errors.Is(err, context.Canceled) {
		return err
	}
	return checkStatus{checkFailed, err}
}

func checkOutcome(r *store.CheckReport) error {
	switch {
	case r.Failed > 0:
		return checkStatus{code: checkFailed}
	case r.Left() > 0:
		return checkStatus{code: checkUnrepaired}
	case r.Repaired > 0:
		return checkStatus{code: checkRepaired}
	}
	return nil
}

// printCheck prints a line for each image and disk, followed by one for each problem and its
// remedy.
func (a *app) printCheck(r *store.CheckReport, repair bool) {
	images, disks := 0, 0
	for _, k := range r.Reports {
		switch k.Kind {
		case store.KindImage:
			images++
		case store.KindDisk:
			disks++
		}
		a.printChecked(k)
	}
	text := fmt.Sprintf("checked %s, %s: ", countText(int64(images), "image"),
		countText(int64(disks), "disk"))
	if r.Found == 0 && r.Failed > 0 {
		text += "no problem was found in what could be checked"
	} else if r.Found == 0 {
		text += "nothing is wrong"
	} else {
		text += countText(int64(r.Found), "problem")
	}
	if r.Repaired > 0 {
		text += fmt.Sprintf(", %d repaired", r.Repaired)
	}
	if r.Left() > 0 && repair {
		text += fmt.Sprintf(", %d left", r.Left())
	}
	if r.Repairable > 0 {
		text += fmt.Sprintf("; %s would repair %d", a.command("check", "--repair"), r.Repairable)
	}
	if r.Failed > 0 {
		text += fmt.Sprintf("; %d could not be checked to the end", r.Failed)
	}
	a.printf("%s", text)
}

func (a *app) printChecked(k *store.Report) {
	text := k.Kind
	if k.Name != "" {
		text += " " + k.Name
	}
	switch {
	case len(k.Problems) > 0:
		text += ": " + countText(int64(len(k.Problems)), "problem")
	case k.Error != "":
		text += ": not checked to the end"
	default:
		text += ": ok"
	}
	if k.Layers > 0 {
		blocks := countText(int64(k.Blocks), "block")
		if k.AtLeast {
			blocks = "at least " + blocks
		}
		text += fmt.Sprintf(" (%s, %s)", countText(int64(k.Layers), "layer"), blocks)
	}
	a.printf("%s", text)
	for _, p := range k.Problems {
		a.printf("  %s: %s: expected %s, found %s (%s)", p.Object, p.What, p.Expected, p.Found,
			p.File)
		switch p.Status {
		case finding.Repaired:
			a.printf("    repaired: %s", p.Remedy)
		case finding.Repairable:
			a.printf("    --repair would: %s", p.Remedy)
		case finding.Left:
			a.printf("    left: %s", p.Advice)
		}
	}
	for _, n := range k.Notes {
		a.printf("  note: %s", n)
	}
	if k.Error != "" {
		a.printf("  error: %s", k.Error)
	}
}
