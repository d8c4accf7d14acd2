/*
 * Predict the open slide with lrmil and show where the model looked. For QuPath 0.5 to 0.7.
 *
 * Edit the two paths below once. With annotations selected, only the tiles inside them are used; with none selected, the
 * whole slide. Results go into the folder "lrmil" of the project, or beside the slide where there is no project.
 *
 * Without QuPath's window:  QuPath script -i SLIDE -a /path/to/lrmil -a /path/to/model.safetensors lrmil_predict.groovy
 * All slides of a project:  QuPath script -p PROJECT.qpproj -s -a /path/to/lrmil -a /path/to/model.safetensors lrmil_predict.groovy
 *
 * Research use only.
 */
import qupath.lib.color.ColorMaps
import qupath.lib.gui.tools.MeasurementMapper

def lrmil = args.length > 0 ? args[0] : "/path/to/venv/bin/lrmil"   // the full path: QuPath reads no shell profile
                                                                    // (Windows: "C:/path/to/venv/Scripts/lrmil.exe")
def model = args.length > 1 ? args[1] : "/path/to/model.safetensors"
def measurement = "LRMIL attention (0-1)"
def colors = "Viridis"

for (path in [lrmil, model]) {
    if (!new File(path.toString()).exists())
        throw new RuntimeException("No such file: " + path + " (edit the top of this script)")
}
def server = getCurrentServer()
if (server == null)
    throw new RuntimeException("Open a slide first")
def slide = server.getURIs().isEmpty() ? null : GeneralTools.toPath(server.getURIs()[0])
if (slide == null)
    throw new RuntimeException("Not a local file: " + server.getPath())

def dir = getProject() != null ? buildPathInProject("lrmil") : buildFilePath(slide.getParent().toString(), "lrmil")
mkdirs(dir)
def base = GeneralTools.stripInvalidFilenameChars(getCurrentImageNameWithoutExtension())
def roi = new File(dir, base + ".roi.geojson")
def map = new File(dir, base + ".heatmap.geojson.gz")
def command = [lrmil, "predict", slide.toString(), "--model", model, "-o", dir, "--geojson", map.getPath(), "--overwrite"]
// The size tells lrmil whether QuPath shows the slide cropped to its bounds.
command += ["--image-size", server.getWidth() + "x" + server.getHeight()]
def regions = getSelectedObjects().findAll { it.isAnnotation() && it.hasROI() && it.getROI().isArea() }
if (regions) {
    exportObjectsToGeoJson(regions, roi.getPath(), "FEATURE_COLLECTION", "EXCLUDE_MEASUREMENTS")
    command += ["--roi", roi.getPath()]
}
println "Running " + command.join(" ")
def process = new ProcessBuilder(command*.toString()).redirectErrorStream(true).start()
process.getInputStream().eachLine { println it }
if (process.waitFor() != 0)
    throw new RuntimeException("lrmil failed with exit code " + process.exitValue() + "; its last line above says why")

// Importing does not look for copies: the map of an earlier run goes first.
removeObjects(getTileObjects().findAll { it.getMeasurements().containsKey(measurement) }, true)
importObjectsFromFile(map.getPath())

def tiles = getTileObjects()
def viewer = getCurrentViewer()   // null without QuPath's window
if (viewer != null && viewer.getImageData() == getCurrentImageData()) {
    Platform.runLater {
        def options = viewer.getOverlayOptions()
        options.setFillDetections(true)
        options.setOpacity(0.6f)
        options.setMeasurementMapper(new MeasurementMapper(ColorMaps.getColorMaps().get(colors), measurement, tiles))
    }
}
println tiles.size() + " tiles shown by " + measurement
