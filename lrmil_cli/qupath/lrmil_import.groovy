/*
 * Load results of lrmil into the images of a project. For QuPath 0.5 to 0.7.
 *
 * For "lrmil predict slides -o DIR --geojson DIR --style both", or files named SLIDE.heatmap.geojson.gz, SLIDE.regions.geojson.gz,
 * SLIDE.geojson and so on. Edit the folder below, then choose Run > Run for project in the script editor (or Run, for the
 * open image). Images without a file are left alone.
 *
 * A file is taken where it is of the slide behind the image: same size in pixels, same content. Its name must be that of
 * the slide's file, or of the image in the project. A file of another slide is refused, and nothing is changed.
 *
 * Without QuPath's window:  QuPath script -p PROJECT.qpproj -s -a DIR lrmil_import.groovy
 *
 * Research use only.
 */
import com.google.gson.Gson
import java.security.MessageDigest
import java.util.zip.GZIPInputStream

def dir = args.length > 0 ? args[0] : (getProject() != null ? buildPathInProject("lrmil") : "/path/to/results")
def measurement = "LRMIL attention (0-1)"
def outlined = "LRMIL region tiles"

if (!new File(dir.toString()).isDirectory())
    throw new RuntimeException("No such folder: " + dir + " (edit the top of this script)")
def server = getCurrentServer()
def uris = server.getURIs()
def slide = uris.isEmpty() ? null : GeneralTools.toPath(uris[0])
def stem = { name -> name.lastIndexOf(".") > 0 ? name.substring(0, name.lastIndexOf(".")) : name }
// Results are named after the slide's file. An image may have been renamed in the project, even to the name of another.
def names = slide == null ? [] : [stem(slide.getFileName().toString())]
names << getCurrentImageNameWithoutExtension()

// What a file of lrmil says of itself, on its first line; the features begin on the second.
def about = { file ->
    try {
        def stream = new FileInputStream(file)
        if (file.getName().toLowerCase().endsWith(".gz"))
            stream = new GZIPInputStream(stream)
        def line = stream.withCloseable { new BufferedReader(new InputStreamReader(it, "UTF-8")).readLine() }
        return new Gson().fromJson(line + "]}", Map).lrmil
    } catch (Exception e) {
        return null
    }
}
// The digest by which lrmil knows a slide: its size, and 18 samples of 16 kB from its first byte to its last.
def fingerprint = { file ->
    def digest = MessageDigest.getInstance("SHA-256")
    long size = file.length()
    digest.update(size.toString().getBytes("UTF-8"))
    new RandomAccessFile(file, "r").withCloseable { data ->
        for (long k = 0; k < 18; k++) {
            long start = Math.max(0L, ((size - 16384L) * k).intdiv(17L) as long)
            byte[] sample = new byte[(int) Math.min(16384L, size - start)]
            data.seek(start)
            data.readFully(sample)
            digest.update(sample)
        }
    }
    return digest.digest().encodeHex().toString().substring(0, 32)
}
def known = slide != null && slide.toFile().isFile() ? fingerprint(slide.toFile()) : null
// Why a file is not of this image, or null where it is.
def wrong = { file ->
    def made = about(file)
    if (made == null || made.image == null || made.slide == null)
        return "it does not say of which slide it is; write it again with lrmil"
    def size = made.image.collect { it as int }
    if (size != [server.getWidth(), server.getHeight()])
        return "it is of an image of " + size.join(" x ") + " px, and this one has " + server.getWidth() + " x " + server.getHeight() +
            "; is it of another slide, or is the image cropped or rotated (lrmil export-geojson --origin, --image-size)?"
    if (known != null && made.fingerprint != known)
        return "it is of another slide (" + made.slide + "), or the slide has changed; run lrmil predict on " + slide
    if (known == null && !(stem(made.slide) in names))
        return "it is of the slide " + made.slide + ", and there is no local file to compare with"
    return null
}
// The first file of each kind that is of this image; QuPath's own scripts leave out characters that not every disk takes.
def refused = []
def find = { kinds ->
    for (name in names.collectMany { [it, GeneralTools.stripInvalidFilenameChars(it)] }.unique()) {
        for (kind in kinds) {
            for (suffix in [".geojson.gz", ".geojson"]) {
                def file = new File(dir.toString(), name + kind + suffix)
                if (name.contains("/") || !file.isFile())
                    continue
                def reason = wrong(file)
                if (reason == null)
                    return file
                refused << file.getName() + ": " + reason
            }
        }
    }
    return null
}
def heatmap = find([".heatmap", ""])
def regions = find([".regions"])
if (heatmap == null && regions == null && refused.isEmpty()) {
    println "Nothing for " + names.unique().join(" or ") + " in " + dir
    return
}
if (heatmap == null && regions == null)
    throw new RuntimeException("Nothing loaded. " + refused.join(". "))
refused.each { println "Left alone: " + it }
// Importing does not look for copies: what an earlier run left goes first.
if (heatmap != null) {
    removeObjects(getTileObjects().findAll { it.getMeasurements().containsKey(measurement) }, true)
    def before = getTileObjects().size()
    importObjectsFromFile(heatmap.getPath())
    println heatmap.getName() + ": " + (getTileObjects().size() - before) + " tiles"
}
if (regions != null) {
    removeObjects(getAnnotationObjects().findAll { it.getMeasurements().containsKey(outlined) }, true)
    def before = getAnnotationObjects().size()
    importObjectsFromFile(regions.getPath())
    println regions.getName() + ": " + (getAnnotationObjects().size() - before) + " regions"
}
