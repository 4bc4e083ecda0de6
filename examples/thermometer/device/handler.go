package device

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"math/rand/v2"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"
)

//go:embed page
var pageFiles embed.FS

// Bounds of requests.
const (
	formMax     = 16 << 10
	firmwareMax = 8 << 30
	downloadMax = 16 << 30
	// stall is how long a peer may take no byte, or send none: slow is not
	// stuck, so it starts anew with every piece.
	stall = 30 * time.Second
	piece = 64 << 10
)

// contentPolicy: the page is these files, and talks to this device only.
const contentPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"form-action 'self'; base-uri 'none'; frame-ancestors 'self'"

// Handler serves the page and what it is made of. What changes something
// refuses requests that a browser makes on behalf of another site.
func (d *Device) Handler() http.Handler {
	assets := newAssets("style.css", "app.js", "icon.svg")
	page := template.Must(template.New("index.html").Funcs(template.FuncMap{"asset": assets.url}).
		ParseFS(pageFiles, "page/index.html"))

	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		d.servePage(w, page, http.StatusOK, d.form(r.URL.Query().Has("saved")))
	})
	mux.Handle("GET /assets/{file}", assets)
	mux.HandleFunc("GET /api/reading", d.serveReading)
	mux.HandleFunc("GET /readings.csv", d.serveCSV)
	mux.HandleFunc("GET /download", d.serveDownload)
	mux.HandleFunc("GET /events", d.serveEvents)
	mux.HandleFunc("GET /ws", d.serveSocket)
	mux.HandleFunc("POST /settings", func(w http.ResponseWriter, r *http.Request) { d.takeSettings(w, r, page) })
	mux.HandleFunc("POST /firmware", d.takeFirmware)
	mux.HandleFunc("PUT /firmware", d.takeFirmware) // curl -T
	guarded := http.NewCrossOriginProtection().Handler(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", contentPolicy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-store")
		progress{w}.write() // long answers renew it
		guarded.ServeHTTP(w, r)
	})
}

// progress sets deadlines that the caller renews as bytes move. A connection
// without deadlines goes without: there is nothing to be done about it.
type progress struct{ w http.ResponseWriter }

func (p progress) write() {
	_ = http.NewResponseController(p.w).SetWriteDeadline(time.Now().Add(stall))
}

func (p progress) read() {
	_ = http.NewResponseController(p.w).SetReadDeadline(time.Now().Add(stall))
}

// readDone lifts the deadline: net/http goes on reading, to see whether the
// client leaves.
func (p progress) readDone() {
	_ = http.NewResponseController(p.w).SetReadDeadline(time.Time{})
}

// form is what the template shows.
type form struct {
	Name, Alarm string
	Unit        Unit
	Problems    map[string]string
	Saved       bool

	Probe    string // the name in force
	Reading  string
	State    string
	Firmware *Firmware
	NameMax  int
}

// form is filled with what is in force.
func (d *Device) form(saved bool) form {
	s, r := d.Settings(), d.Reading()
	f := form{
		Name: s.Name, Unit: s.Unit, Alarm: strconv.FormatFloat(s.Unit.From(s.Alarm), 'f', 1, 64), Saved: saved,
		Probe: s.Name, Reading: s.Unit.format(r.Celsius, 2), State: "Normal", NameMax: NameMax,
	}
	if r.Celsius > s.Alarm {
		f.State = "Alarm: above " + s.Unit.format(s.Alarm, 1)
	}
	d.mu.Lock()
	f.Firmware = d.firmware
	d.mu.Unlock()
	return f
}

func (d *Device) servePage(w http.ResponseWriter, page *template.Template, status int, f form) {
	var b bytes.Buffer
	if err := page.Execute(&b, f); err != nil {
		d.log.Error("page", "err", err)
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(b.Len()))
	w.WriteHeader(status)
	_, _ = b.WriteTo(w) // the visitor has gone: there is nobody to tell
}

// takeSettings answers a good form with a redirect, so that reloading the page
// does not send it again, and a bad one with the page, the form as it was sent,
// and what is wrong.
func (d *Device) takeSettings(w http.ResponseWriter, r *http.Request, page *template.Template) {
	progress{w}.read()
	defer progress{w}.readDone()
	r.Body = http.MaxBytesReader(w, r.Body, formMax)
	if err := r.ParseForm(); err != nil {
		status := http.StatusBadRequest
		if tooBig := new(http.MaxBytesError); errors.As(err, &tooBig) {
			status = http.StatusRequestEntityTooLarge
		}
		http.Error(w, http.StatusText(status), status)
		return
	}
	name, unit, alarm := r.PostFormValue("name"), r.PostFormValue("unit"), r.PostFormValue("alarm")
	s, problems := ParseSettings(name, unit, alarm)
	if problems != nil {
		f := d.form(false)
		f.Name, f.Alarm = strings.ToValidUTF8(name, "\uFFFD"), strings.ToValidUTF8(alarm, "\uFFFD")
		f.Unit, f.Problems = s.Unit, problems
		d.servePage(w, page, http.StatusUnprocessableEntity, f)
		return
	}
	d.Set(s)
	d.log.Info("settings changed", "name", s.Name, "unit", s.Unit, "alarm", s.Alarm)
	http.Redirect(w, r, "/?saved#settings", http.StatusSeeOther)
}

// takeFirmware reads an image as it comes, as a form's file or as the bare body,
// and keeps its size and checksum only.
func (d *Device) takeFirmware(w http.ResponseWriter, r *http.Request) {
	defer progress{w}.readDone()
	r.Body = http.MaxBytesReader(w, r.Body, firmwareMax)
	var image io.Reader = r.Body
	if strings.HasPrefix(r.Header.Get("Content-Type"), "multipart/form-data") {
		parts, err := r.MultipartReader()
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		progress{w}.read()
		part, err := parts.NextPart()
		if err != nil {
			http.Error(w, "no file in the form", http.StatusBadRequest)
			return
		}
		image = part
	}
	sum := sha256.New()
	started := time.Now()
	n, err := copyPieces(sum, image, progress{w}.read)
	if err != nil {
		status := http.StatusBadRequest
		if tooBig := new(http.MaxBytesError); errors.As(err, &tooBig) {
			status = http.StatusRequestEntityTooLarge
		}
		http.Error(w, "upload broke off after "+strconv.FormatInt(n, 10)+" bytes", status)
		return
	}
	f := Firmware{Bytes: n, SHA256: hex.EncodeToString(sum.Sum(nil)), At: time.Now().UTC().Truncate(time.Second)}
	d.setFirmware(f)
	d.log.Info("firmware received", "bytes", f.Bytes, "sha256", f.SHA256, "took", time.Since(started))
	progress{w}.write()
	serveJSON(w, f)
}

// copyPieces is io.Copy that calls before with every piece.
func copyPieces(dst io.Writer, src io.Reader, before func()) (n int64, err error) {
	buf := make([]byte, piece)
	for {
		before()
		got, err := src.Read(buf)
		if _, err := dst.Write(buf[:got]); err != nil {
			return n, err
		}
		n += int64(got)
		if err == io.EOF {
			return n, nil
		} else if err != nil {
			return n, err
		}
	}
}

// serveReading is the last reading for programs.
func (d *Device) serveReading(w http.ResponseWriter, _ *http.Request) {
	serveJSON(w, d.readingJSON(d.Reading(), d.Settings()))
}

func serveJSON(w http.ResponseWriter, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic("device: cannot be written as JSON: " + err.Error())
	}
	b = append(b, '\n')
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	_, _ = w.Write(b) // the visitor has gone: there is nobody to tell
}

// serveCSV is the history as a file for spreadsheets.
func (d *Device) serveCSV(w http.ResponseWriter, _ *http.Request) {
	d.mu.Lock()
	history := append([]Reading(nil), d.history...)
	d.mu.Unlock()
	w.Header().Set("Content-Type", "text/csv; charset=utf-8")
	w.Header().Set("Content-Disposition", `attachment; filename="readings.csv"`)
	_, err := io.WriteString(w, "time,celsius,door_open\r\n")
	for _, r := range history {
		if err != nil {
			return
		}
		_, err = fmt.Fprintf(w, "%s,%.2f,%t\r\n", r.Time.UTC().Format("2006-01-02T15:04:05.000Z"), r.Celsius, r.Door)
	}
}

// downloadSeed makes the bytes of every download the same: those of ChaCha8
// under this key.
var downloadSeed = [32]byte([]byte("iottunnel thermometer: test data"))

// serveDownload streams as many bytes as asked for, the same ones each time.
func (d *Device) serveDownload(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.ParseInt(r.URL.Query().Get("bytes"), 10, 64)
	if err != nil || n < 0 || n > downloadMax {
		http.Error(w, "bytes is a number from 0 to "+strconv.Itoa(downloadMax), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Disposition", `attachment; filename="test.bin"`)
	w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
	if r.Method == http.MethodHead {
		return
	}
	src := io.LimitReader(rand.NewChaCha8(downloadSeed), n)
	_, _ = copyPieces(w, src, progress{w}.write) // a visitor who leaves sees it first
}

// assets are files under names that change with their content, so that browsers
// may keep them for good.
type assets map[string]asset

type asset struct {
	name, contentType string
	content           []byte
}

func newAssets(names ...string) assets {
	a := make(assets)
	for _, name := range names {
		content, err := pageFiles.ReadFile("page/" + name)
		if err != nil {
			panic(err) // embedded: a mistake of ours
		}
		sum := sha256.Sum256(content)
		ext := path.Ext(name)
		types := map[string]string{".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
		a[strings.TrimSuffix(name, ext)+"."+hex.EncodeToString(sum[:6])+ext] = asset{name, types[ext], content}
	}
	return a
}

// url is where the file of that name is.
func (a assets) url(name string) string {
	for file, asset := range a {
		if asset.name == name {
			return "/assets/" + file
		}
	}
	panic("device: no file " + name)
}

func (a assets) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f, ok := a[r.PathValue("file")]
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", f.contentType)
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(f.content))
}
