package store

import (
	"fmt"

	"cowblk/cow/finding"
	"cowblk/cow/shell"
	"cowblk/cow/vfs"
	"cowblk/cow/way"
)

// trustedFiles refuses a disk if another user could put other files in the place of a layer's map or
// data, or of its image: through the directory of a layer or image, through a symbolic link, or
// through the directory of a file that a table names. This process would read or write the other
// file, with its own rights. A base in place is only read, and the operator has named it. Missing
// files are accepted. It is an ErrInvalid.
func (s *Store) trustedFiles(m *Manifest) error {
	for i := range m.Layers {
		if err := s.trustedLayer(&m.Layers[i]); err != nil {
			return fmt.Errorf("disk %q: %w", m.Name, err)
		}
	}
	if m.Base == nil || m.Base.Image == "" {
		return nil
	}
	if err := s.trustedImage(m.Base.Image); err != nil {
		return fmt.Errorf("disk %q: %w", m.Name, err)
	}
	return nil
}

// trustedLayer is trustedFiles for one layer.
func (s *Store) trustedLayer(l *Layer) error {
	for _, path := range s.layerFiles(l) {
		if err := s.trustedFile(layerObject(l.UUID), path); err != nil {
			return err
		}
	}
	return nil
}

// layerFiles returns the paths of a layer's files. Its checksums may be missing.
func (s *Store) layerFiles(l *Layer) []string {
	p := s.paths(l)
	return []string{p.Map, p.Data, s.path(layersDir, l.UUID.String(), checksumsFile)}
}

// trustedImage is trustedFiles for one image.
func (s *Store) trustedImage(name string) error {
	for _, file := range []string{imageFile, dataFile} {
		if err := s.trustedFile(fmt.Sprintf("image %q", name), s.path(imagesDir, name, file)); err != nil {
			return err
		}
	}
	return nil
}

// trustedFile refuses a file that another user can replace. what names its owner.
func (s *Store) trustedFile(what, path string) error {
	if untrusted := s.untrustedFile(path); untrusted != nil {
		return finding.Invalidf("%s: %s: expected a way to it that only %s can change, found %s: %s can lead this process to any file through it\n%s",
			what, shell.Text(path), trustedUsers(), untrusted, untrusted.WhoCanChange(), adviceFileWay())
	}
	return nil
}

// untrustedFile returns the directory in which another user can replace a file; nil: none.
func (s *Store) untrustedFile(path string) *way.Untrusted {
	if _, real := s.fs.(vfs.HostFS); !real {
		return nil
	}
	untrusted, _ := way.CheckFile(path, pathOptions()) // the open reports the error
	return untrusted
}

// untrustedFinding is trustedFile for a check; nil: none. In a store that is not trusted as a whole
// it would only repeat that.
func (s *Store) untrustedFinding(paths ...string) *finding.Finding {
	if s.trustedPath() != nil {
		return nil
	}
	for _, path := range paths {
		if untrusted := s.untrustedFile(path); untrusted != nil {
			return refused(path, "directories on the way to the file", "ones that only "+trustedUsers()+" can change",
				fmt.Sprintf("%s: %s can lead this process to any file through it", untrusted, untrusted.WhoCanChange()), adviceFileWay())
		}
	}
	return nil
}

func adviceFileWay() string {
	return "put the file where only " + trustedUsers() + " can change the directories and links on the way to it"
}
