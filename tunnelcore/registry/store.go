package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// The file is a bbolt database with seven buckets; files of before have no
// credentials, codes, journals and grants. Keys are text, values JSON; a
// reader ignores fields that it does not know.
//
//	meta     "format"  1
//	meta     "state"   {"generation":1767225600000000,"clock_ms":…,"wall_ms":…}
//	devices  device    {"label":"…","generation":…,"online":true,"until_ms":…,"seen_ms":…,"why":"…","ports":{"22":40001}}
//	rests    port      {"until_ms":…,"device":"…","port":22}
//	credentials  device  {"current":"…","next":"…","version":…,"changed_ms":…}
//	codes    id        {"hash":"…","device":"…","created_ms":…,"until_ms":…}
//	grants   id        {"kind":"…","device":"…","port":…,"by":"…","hash":"…","created_ms":…,"until_ms":…}
//	journals device    {"tags":["…"],"hours":[{"hour":…,"connects":…}],"events":[{"at_ms":…,"kind":"…","node":"…","detail":"…"}]}
//
// Times are those of the registry's clock (see clock), which state ties to Unix
// time. A format that is not 1 is not read. Nodes are not kept, nor who held a
// device: after a restart nobody does.
var (
	bucketMeta    = []byte("meta")
	bucketDevices = []byte("devices")
	bucketRests   = []byte("rests")
	bucketSecrets = []byte("credentials")
	bucketCodes   = []byte("codes")
	bucketJournal = []byte("journals")
	bucketGrants  = []byte("grants")
	keyFormat     = []byte("format")
	keyState      = []byte("state")
)

const format = "1"

// lockTimeout is how long the file may be locked by somebody else, so that a
// process can be replaced by its successor.
const lockTimeout = 2 * time.Second

type storedState struct {
	// Generation is the highest that was ever handed out: the next is above it,
	// whatever became of the record and of the machine's clock.
	Generation int64 `json:"generation"`
	ClockMS    int64 `json:"clock_ms"`
	WallMS     int64 `json:"wall_ms"`
}

type storedDevice struct {
	Label      string            `json:"label"`
	Generation int64             `json:"generation"`
	Online     bool              `json:"online,omitempty"`
	UntilMS    int64             `json:"until_ms"`
	SeenMS     int64             `json:"seen_ms"`
	Why        string            `json:"why,omitempty"`
	Ports      map[uint16]uint16 `json:"ports,omitempty"`
}

// storedRest is a public port that rests, and whose it was; older versions did not
// say.
type storedRest struct {
	UntilMS int64  `json:"until_ms"`
	Device  string `json:"device,omitempty"`
	Port    uint16 `json:"port,omitempty"`
}

// A store is the file. One goroutine at a time.
type store struct {
	db   *bbolt.DB
	path string
}

// openStore opens or creates the file, and its folder.
func openStore(path string) (*store, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("registry: folder of the store: %w", err)
	}
	var file *os.File // bbolt does not close it when it panics over what it reads
	options := &bbolt.Options{
		Timeout:      lockTimeout,
		FreelistType: bbolt.FreelistMapType,
		NoStatistics: true,
		OpenFile: func(name string, flag int, mode os.FileMode) (f *os.File, err error) {
			file, err = os.OpenFile(name, flag, mode)
			return file, err
		},
	}
	s := &store{path: path}
	err := catch(func() (err error) {
		s.db, err = bbolt.Open(path, 0o600, options)
		return err
	})
	var damage *faultError
	var unreadable *os.PathError
	switch {
	case err == nil:
	case errors.As(err, &damage):
		letGo(file)
		return nil, s.damaged(err)
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("registry: %s is in use by another process: stop that one, or give each its own file", path)
	case errors.As(err, &unreadable):
		return nil, fmt.Errorf("registry: store: %w", err) // names the path
	default:
		return nil, s.damaged(err)
	}
	if err := catch(s.prepare); err != nil {
		if errors.As(err, &damage) {
			letGo(file) // closing the database may wait for what the panic left locked
			return nil, s.damaged(err)
		}
		_ = s.db.Close() // nothing was written
		return nil, err
	}
	return s, nil
}

// letGo closes a file that bbolt failed on halfway, for whoever cures it.
func letGo(f *os.File) {
	_ = unlock(f) // both may fail, and the damage is what matters
	_ = f.Close()
}

// prepare makes the buckets of a new file, and refuses what is not a file of ours.
func (s *store) prepare() error {
	return s.db.Update(func(tx *bbolt.Tx) error {
		if b := tx.Bucket(bucketMeta); b != nil {
			f := b.Get(keyFormat)
			if string(f) != format {
				return fmt.Errorf("registry: %s has format %q, this version reads %s: use the version that wrote it, or another file", s.path, f, format)
			}
			if tx.Bucket(bucketDevices) == nil || tx.Bucket(bucketRests) == nil {
				return s.damaged(errors.New("a bucket is missing"))
			}
			return createLater(tx)
		}
		if name, _ := tx.Cursor().First(); name != nil {
			return fmt.Errorf("registry: %s is a database of another program: use another file", s.path)
		}
		for _, name := range [][]byte{bucketMeta, bucketDevices, bucketRests} {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		if err := createLater(tx); err != nil {
			return err
		}
		return tx.Bucket(bucketMeta).Put(keyFormat, []byte(format))
	})
}

// createLater makes the buckets that files of before do not have.
func createLater(tx *bbolt.Tx) error {
	for _, name := range [][]byte{bucketSecrets, bucketCodes, bucketJournal, bucketGrants} {
		if _, err := tx.CreateBucketIfNotExists(name); err != nil {
			return err
		}
	}
	return nil
}

// reading is who takes in what the file holds.
type reading struct {
	state      func(storedState)
	device     func(string, storedDevice) error
	rest       func(uint16, storedRest) error
	credential func(string, storedCredential) error
	code       func(string, storedCode) error
	journal    func(string, storedJournal) error
	grant      func(string, storedGrant) error
}

// readAll decodes the values of a bucket.
func readAll[T any](b *bbolt.Bucket, what string, take func(string, T) error) error {
	return b.ForEach(func(k, v []byte) error {
		var value T
		if err := json.Unmarshal(v, &value); err != nil {
			return fmt.Errorf("%s %q: %w", what, k, err)
		}
		return take(string(k), value)
	})
}

// read hands over what the file holds: the state first, then all else.
func (s *store) read(into reading) error {
	err := catch(func() error {
		return s.db.View(func(tx *bbolt.Tx) error {
			var st storedState
			if v := tx.Bucket(bucketMeta).Get(keyState); v != nil {
				if err := json.Unmarshal(v, &st); err != nil {
					return fmt.Errorf("state: %w", err)
				}
			}
			into.state(st)
			if err := readAll(tx.Bucket(bucketDevices), "device", into.device); err != nil {
				return err
			}
			rest := func(k string, r storedRest) error {
				port, err := strconv.ParseUint(k, 10, 16)
				if err != nil {
					return fmt.Errorf("resting port %q: %w", k, err)
				}
				return into.rest(uint16(port), r)
			}
			if err := readAll(tx.Bucket(bucketRests), "resting port", rest); err != nil {
				return err
			}
			if err := readAll(tx.Bucket(bucketSecrets), "credential of", into.credential); err != nil {
				return err
			}
			if err := readAll(tx.Bucket(bucketCodes), "code", into.code); err != nil {
				return err
			}
			if err := readAll(tx.Bucket(bucketGrants), "grant", into.grant); err != nil {
				return err
			}
			return readAll(tx.Bucket(bucketJournal), "journal of", into.journal)
		})
	})
	if err != nil {
		return s.damaged(err)
	}
	return nil
}

// write makes a batch durable: all of it or, with an error, most likely nothing.
func (s *store) write(b *batch, now saved) error {
	return catch(func() error {
		return s.db.Update(func(tx *bbolt.Tx) error {
			devices, rests := tx.Bucket(bucketDevices), tx.Bucket(bucketRests)
			for id, r := range b.devices {
				if err := put(devices, id, r.stored()); err != nil {
					return err
				}
			}
			for port, use := range b.ports {
				var v any
				if use.rest > b.now {
					v = storedRest{UntilMS: use.rest, Device: use.device, Port: use.port}
				}
				if err := put(rests, strconv.Itoa(int(port)), v); err != nil {
					return err
				}
			}
			if err := writeMaps(tx, b); err != nil {
				return err
			}
			return put(tx.Bucket(bucketMeta), string(keyState),
				storedState{Generation: b.generation, ClockMS: now.clock, WallMS: now.wall})
		})
	})
}

func writeMaps(tx *bbolt.Tx, b *batch) error {
	if err := putAll(tx.Bucket(bucketSecrets), b.credentials); err != nil {
		return err
	}
	if err := putAll(tx.Bucket(bucketCodes), b.codes.changed); err != nil {
		return err
	}
	if err := putAll(tx.Bucket(bucketGrants), b.grants.changed); err != nil {
		return err
	}
	return putAll(tx.Bucket(bucketJournal), b.journals)
}

// putAll stores what there is, and removes the keys of those that are nil.
func putAll[T any](b *bbolt.Bucket, all map[string]*T) error {
	for key, value := range all {
		var v any
		if value != nil {
			v = value
		}
		if err := put(b, key, v); err != nil {
			return err
		}
	}
	return nil
}

// put stores v as JSON, or removes the key when v is nil.
func put(b *bbolt.Bucket, key string, v any) error {
	if v == nil {
		return b.Delete([]byte(key))
	}
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return b.Put([]byte(key), data)
}

func (s *store) close() error {
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("registry: close %s: %w", s.path, err)
	}
	return nil
}

func (s *store) damaged(err error) error {
	return fmt.Errorf("registry: %s is damaged: %w (restore it from a backup or move it away; without it every device gets a new hostname)", s.path, err)
}

// faultError is a panic of bbolt, or a read beyond the end of the mapped file:
// how it meets a file that is not what it wrote.
type faultError struct{ fault any }

func (e *faultError) Error() string { return fmt.Sprint(e.fault) }

// catch calls f and turns a fault into a *faultError.
func catch(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = &faultError{p}
		}
	}()
	return f()
}
