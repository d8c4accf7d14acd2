/*
 * Load results of lrmil into the images of a project, by image name. For QuPath 0.5 to 0.7.
 *
 * For "lrmil predict slides -o DIR --geojson DIR --style both", or files named IMAGE.heatmap.geojson.gz, IMAGE.regions.geojson.gz,
 * IMAGE.geojson and so on. Edit the folder below, then choose Run > Run for project in the script editor (or Run, for the
 * open image). Images without a file are left alone.
 *
 * Without QuPath's window:  QuPath script -p PROJECT.qpproj -s -a DIR lrmil_import.groovy
 *
 * Research use only.
 */
def dir = args.length > 0 ? args[0] : (getProject() != null ? buildPathInProject("lrmil") : "/path/to/results")
def measurement = "LRMIL attention (0-1)"

if (!new File(dir.toString()).isDirectory())
    throw new RuntimeException("No such folder: " + dir + " (edit the top of this script)")
// The image may have been renamed in the project; results are named after the file.
def names = [getCurrentImageNameWithoutExtension()]
def uris = getCurrentServer().getURIs()
def slide = uris.isEmpty() ? null : GeneralTools.toPath(uris[0])
if (slide != null) {
    def file = slide.getFileName().toString()
    names << (file.lastIndexOf(".") > 0 ? file.substring(0, file.lastIndexOf(".")) : file)
}
// The first file found of each kind is taken.
def find = { kinds ->
    for (name in names.unique()) {
        for (kind in kinds) {
            for (suffix in [".geojson.gz", ".geojson"]) {
                def file = new File(dir.toString(), GeneralTools.stripInvalidFilenameChars(name) + kind + suffix)
                if (file.exists())
                    return file
            }
        }
    }
    return null
}
def heatmap = find([".heatmap", ""])
def regions = find([".regions"])
if (heatmap == null && regions == null) {
    println "Nothing for " + names.join(" or ") + " in " + dir
    return
}
// Importing does not look for copies: what an earlier run left goes first.
if (heatmap != null) {
    removeObjects(getTileObjects().findAll { it.getMeasurements().containsKey(measurement) }, true)
    importObjectsFromFile(heatmap.getPath())
    println heatmap.getName() + ": " + getTileObjects().size() + " tiles"
}
if (regions != null) {
    removeObjects(getAnnotationObjects().findAll { it.getMeasurements().containsKey("LRMIL region tiles") }, true)
    importObjectsFromFile(regions.getPath())
    println regions.getName() + ": " + getAnnotationObjects().findAll { it.getMeasurements().containsKey("LRMIL region tiles") }.size() + " regions"
}
