package main

import (
	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"cowblk/cow/store"
)

func newImport(a *app) *cobra.Command {
	var o store.ImportOptions
	cmd := &cobra.Command{
		Use:   "import FILE NAME",
		Short: "Make an image of a raw or qcow2 file",
		Long: `Make an image of a raw or qcow2 file, for disks to lie on.

The content is copied sparse, made durable, read back and compared; its SHA-256 is
recorded. The file itself is not changed and not needed afterwards. A qcow2 may be
compressed and may have backing files; anything that cannot be read for certain is
refused with the command that converts it.`,
		Example: `  cowblk import golden.qcow2 debian-12
  cowblk import --format raw disk.img fedora
  cowblk import /dev/vg0/golden golden`,
		Args: exactArgs("FILE", "NAME"),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return nil, cobra.ShellCompDirectiveDefault // a file
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.openStore()
			if err != nil {
				return err
			}
			bars := a.newBars()
			o.Progress = bars.update
			img, err := s.Import(cmd.Context(), args[0], args[1], o)
			bars.end()
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(img)
			}
			a.say("image %s: %s, SHA-256 %s", img.Name, bytesText(img.Size), img.SHA256)
			a.say("next: %s", a.command("create", "vm1", "--from", img.Name))
			return nil
		},
	}
	cmd.Flags().StringVar(&o.Format, "format", "", "`FORMAT` of the file, raw or qcow2 (default: found from its content)")
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]cobra.Completion{store.FormatRaw, store.FormatQcow2}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// bars shows one progress bar per phase, to a person only.
type bars struct {
	out   *mpb.Progress // nil: nobody is watching
	phase string
	bar   *mpb.Bar
}

func (a *app) newBars() *bars {
	if a.json || !a.terminal(a.err) {
		return &bars{}
	}
	return &bars{out: mpb.New(mpb.WithOutput(a.err), mpb.WithWidth(60))}
}

func (b *bars) update(phase string, done, total int64) {
	if b.out == nil {
		return
	}
	if phase != b.phase {
		b.phase = phase
		b.bar = b.out.AddBar(total,
			mpb.PrependDecorators(decor.Name(phase, decor.WC{W: 7, C: decor.DindentRight})),
			mpb.AppendDecorators(decor.CountersKibiByte("% .1f / % .1f"), decor.Percentage(decor.WC{W: 6})))
	}
	b.bar.SetCurrent(done)
}

// end leaves the bars as they are: complete, or where the import stopped.
func (b *bars) end() {
	if b.out == nil {
		return
	}
	if b.bar != nil && !b.bar.Completed() {
		b.bar.Abort(false)
	}
	b.out.Wait()
}
