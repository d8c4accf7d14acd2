/*
 * Run a script of QuPath on stand-ins for its classes: run.groovy SCRIPT IMAGES.json. A line of JSON an image says what
 * tiles and annotations it has afterwards, what the script printed, and the error it ended with.
 */
import groovy.json.JsonOutput
import groovy.json.JsonSlurper
import java.nio.file.Path
import java.nio.file.Paths
import java.util.zip.GZIPInputStream
import org.codehaus.groovy.control.CompilerConfiguration
import org.codehaus.groovy.control.customizers.ImportCustomizer

class PathObject {
    String type
    Map measurements
}

class Server {
    Map image
    List<URI> getURIs() { image.slide == null ? [new URI("https://example.org/slide")] : [new File(image.slide).toURI()] }
    int getWidth() { image.size[0] }
    int getHeight() { image.size[1] }
}

class GeneralTools {
    static Path toPath(URI uri) { uri.scheme == "file" ? Paths.get(uri) : null }
    static String stripInvalidFilenameChars(String name) { name.replaceAll(/[\\\\:"*?<>|\/]/, "") }
}

abstract class StandIn extends Script {
    static Map image
    static List<PathObject> objects
    static StringBuilder said
    def getCurrentServer() { new Server(image: image) }
    def getProject() { null }
    String getCurrentImageNameWithoutExtension() { image.name }
    def getTileObjects() { objects.findAll { it.type == "tile" } }
    def getAnnotationObjects() { objects.findAll { it.type == "annotation" } }
    void removeObjects(Collection some, boolean keepChildren) { objects.removeAll(some) }
    boolean importObjectsFromFile(String path) {
        def stream = new FileInputStream(path)
        def text = (path.endsWith(".gz") ? new GZIPInputStream(stream) : stream).getText("UTF-8")
        new JsonSlurper().parseText(text).features.each {
            objects << new PathObject(type: it.properties.objectType, measurements: it.properties.measurements)
        }
    }
    void println(Object text) { said << text << "\n" }
}

def compiled = new CompilerConfiguration(scriptBaseClass: StandIn.name)
compiled.addCompilationCustomizers(new ImportCustomizer().addImports("GeneralTools"))
for (image in new JsonSlurper().parse(new File(args[1]))) {
    StandIn.image = image
    StandIn.objects = image.tiles.collect { new PathObject(type: "tile", measurements: it.measurements) }
    StandIn.said = new StringBuilder()
    def error = null
    try {
        new GroovyShell(this.class.classLoader, new Binding(args: [image.dir] as String[]), compiled).evaluate(new File(args[0]))
    } catch (RuntimeException e) {
        error = e.toString()
    }
    def count = { type -> StandIn.objects.count { it.type == type } }
    println JsonOutput.toJson([tiles: count("tile"), annotations: count("annotation"), said: StandIn.said.toString(), error: error])
}
