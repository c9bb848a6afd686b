package imagefile

import (
	"fmt"
	"os"

	"cowblk/cow/finding"
	"cowblk/cow/layer"
	"cowblk/cow/shell"
	"cowblk/cow/vfs"
)

// CheckRaw refuses a file that is to be served without a store unless it can be the content of a
// disk. It refuses other image formats, compressed files, archives, and sizes that no disk has.
// LUKS is accepted: a guest may encrypt its whole disk. path is absolute. word is the option that
// accepts any format, for the advice; empty: any format is accepted.
func CheckRaw(path, word string) error {
	if err := finding.CheckPath("file", path); err != nil {
		return err
	}
	f, err := vfs.OpenImage(vfs.OS{}, path, os.O_RDONLY)
	if err != nil {
		return Refused("file", path, err)
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return err
	}
	if word != "" && size > 0 {
		format, err := probe(f)
		if err != nil {
			return err
		}
		if format.name != Raw && !(format.kind == kindOther && format.disk) {
			return format.notRaw(vfs.OS{}, path, "format of the file", word,
				"import it, and serve a disk on it: cowblk import "+shell.Path(path)+
					" NAME; cowblk create DISK --from NAME")
		}
	}
	if size == 0 || size%layer.SectorSize != 0 {
		return finding.New(nil, path, "size of the file", ExpectedSize, finding.Bytes(size),
			SizeAdvice(size))
	}
	return nil
}

// CheckBase refuses a base in another image format, a compressed file and an archive.
func CheckBase(fsys vfs.FS, f vfs.File, path string) error {
	format, err := probe(f)
	if err != nil {
		return fmt.Errorf("base: %w", err)
	}
	if format.name == Raw {
		return nil
	}
	return format.notRaw(fsys, path, "format of the base", "--force", "import it: cowblk import "+
		shell.Path(path)+" NAME")
}

// notRaw refuses a file that is not raw. word is the option that accepts it as it is; toImport says
// what to do with a qcow2.
func (f *fileFormat) notRaw(fsys vfs.FS, path, what, word, toImport string) error {
	advice := f.advice(fsys, path, Raw, word)
	switch {
	case f.name == Qcow2:
		advice = toImport + "\nif the guest is to see the qcow2 file itself: " + word
	case !f.disk:
		advice += "\nif the guest is to see the file itself: " + word
	}
	return finding.New(nil, path, what, "raw", f.name, advice)
}
